"""The interpreter as conftest.py leaves it: products of fp16 are exact enough, and bf16 is never computed with unseen."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import InterpreterError


@pytest.fixture(autouse=True)
def interpreted(device: str) -> None:
    if device != "cpu":
        pytest.skip("of the interpreter, and these run on a GPU")


@triton.jit
def _square(x, out, WIDEN: tl.constexpr):
    at = tl.arange(0, 16)
    value = tl.load(x + at)
    if WIDEN:
        value = value.to(tl.float32)
    tl.store(out + at, (value * value).to(tl.float32))


@triton.jit
def _product(a, b, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


def matrix(n: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_bf16_that_is_widened_first_is_right() -> None:
    x, out = matrix(4, 0, torch.bfloat16).flatten(), torch.empty(16)
    _square[(1,)](x, out, WIDEN=True)
    assert torch.equal(out, x.float().square())


def test_arithmetic_on_bf16_is_an_error() -> None:
    with pytest.raises(InterpreterError, match="bf16"):
        _square[(1,)](matrix(4, 0, torch.bfloat16).flatten(), torch.empty(16), WIDEN=False)
    with pytest.raises(InterpreterError, match="bf16"):
        _product[(1,)](matrix(16, 0, torch.bfloat16), matrix(16, 1, torch.bfloat16), torch.empty(16, 16), N=16)


def test_products_of_fp16_are_summed_in_float32() -> None:
    a, b, out = matrix(64, 0, torch.float16), matrix(64, 1, torch.float16), torch.empty(64, 64)
    _product[(1,)](a, b, out, N=64)
    # products of fp16 are exact in float32; 64 of them are added, each sum rounds once
    bound = 64 * 2.0**-24 * (a.double().abs() @ b.double().abs())
    assert bool(((out - a.double() @ b.double()).abs() <= bound).all())
