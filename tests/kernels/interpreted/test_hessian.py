"""The triangular Σ xᵀx against float64, within what float32 rounding allows."""

import pytest
import torch
from hubquant_kernels import hessian as definition
from hubquant_kernels.gpu import hessian as kernel
from torch import Tensor

UNIT = 2.0**-24  # unit roundoff of float32


def inputs(tokens: int, width: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Channels of very different size, and a mean that is not zero."""
    random = torch.Generator().manual_seed(seed)
    scale = torch.exp(2 * torch.randn(width, generator=random))
    return ((torch.randn(tokens, width, generator=random) + 0.5) * scale).to(dtype)


def check(x: Tensor, before: Tensor) -> None:
    """γ_n (Σ|x|ᵀ|x| + |before|), n roundings for each product: itself, one sum per token, one to what was there.

    Products that underflow lose up to half the smallest denormal, 2⁻¹⁵⁰, each.
    """
    result = before.clone()
    kernel.accumulate_hessian(result, x)
    n = len(x) + 2
    bound = n * UNIT / (1 - n * UNIT) * (x.double().abs().T @ x.double().abs() + before.double().abs()) + n * 2.0**-150
    assert bool(((result.double() - before.double() - x.double().T @ x.double()).abs() <= bound).all())
    tile = torch.arange(len(result)) // 128
    assert torch.equal(result[tile[:, None] != tile], result.T[tile[:, None] != tile])  # mirrored; within a tile, within the bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("width", [1, 64, 100, 200])
def test_equals_float64_within_float32_rounding(width: int, dtype: torch.dtype) -> None:
    """One, one, three and ten tiles: the fold of the triangle is tried with an even and an odd number of rows."""
    check(inputs(70, width, dtype), torch.zeros(width, width))


@pytest.mark.parametrize("tiles", [1, 2, 3, 4, 5])
def test_every_tile_of_the_triangle_is_computed_once(tiles: int) -> None:
    x = inputs(3, 64 * tiles - 5, torch.float16)
    check(x, torch.zeros(x.shape[1], x.shape[1]))


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 65])
def test_tokens_that_do_not_fill_a_step_add_nothing_more(tokens: int) -> None:
    """Rows after the last lie in the same memory: without the mask they would be summed."""
    x = inputs(100, 40, torch.bfloat16)
    check(x[:tokens], torch.zeros(40, 40))


def test_a_wide_matrix_takes_large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "NARROW", 0)
    check(inputs(40, 200, torch.bfloat16), torch.zeros(200, 200))


def test_adds_to_what_is_there_as_the_definition_does() -> None:
    first, second = inputs(20, 90, torch.bfloat16, 0), inputs(30, 90, torch.bfloat16, 1)
    before = first.float().T @ first.float()
    check(second, (before + before.T) / 2)
    expected, result = torch.zeros(90, 90), torch.zeros(90, 90)
    for x in (first, second):
        definition.accumulate_hessian(expected, x)
        kernel.accumulate_hessian(result, x)
    bound = 2 * 60 * UNIT * (first.double().abs().T @ first.double().abs() + second.double().abs().T @ second.double().abs())
    assert bool(((result - expected).double().abs() <= bound).all())


def test_no_tokens_change_nothing() -> None:
    result = torch.eye(8)
    kernel.accumulate_hessian(result, torch.zeros(0, 8))
    assert torch.equal(result, torch.eye(8))


def test_zeros_denormals_and_large_values() -> None:
    for x in (torch.zeros(40, 30), torch.full((40, 30), 1e-40), torch.full((5, 30), 1e18), torch.full((7, 30), 6e4).half()):
        check(x, torch.zeros(30, 30))


def test_strided_inputs_are_read_as_they_are() -> None:
    check(inputs(50, 140, torch.float16)[:, ::2], torch.zeros(70, 70))
