"""Σ xᵀx against float64, within what float32 rounding allows."""

import pytest
import torch
from hubquant_kernels.hessian import accumulate_hessian
from torch import Tensor

UNIT = 2.0**-24  # unit roundoff of float32


def inputs(tokens: int, width: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Activations with the usual structure: channels of very different size, and a mean that is not zero."""
    random = torch.Generator().manual_seed(seed)
    scale = torch.exp(2 * torch.randn(width, generator=random))
    return ((torch.randn(tokens, width, generator=random) + 0.5) * scale).to(dtype)


def bound(batches: list[Tensor]) -> Tensor:
    """γ_n Σ|x|ᵀ|x| with n roundings on the way of each product: one product, one sum per token, one per batch (Higham, 3.1)."""
    n = sum(len(b) for b in batches) + len(batches) + 1
    magnitude = torch.stack([b.double().abs().T @ b.double().abs() for b in batches]).sum(0)
    return n * UNIT / (1 - n * UNIT) * magnitude


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_float64_within_float32_rounding(dtype: torch.dtype) -> None:
    batches = [inputs(tokens, 96, dtype, seed) for seed, tokens in enumerate((300, 1, 64))]
    hessian = torch.zeros(96, 96)
    for batch in batches:
        accumulate_hessian(hessian, batch)
    exact = torch.stack([b.double().T @ b.double() for b in batches]).sum(0)
    error = (hessian.double() - exact).abs()
    assert bool((error <= bound(batches)).all())


def test_half_precision_inputs_are_not_multiplied_in_half_precision() -> None:
    """The bound of the test above is far below what one rounding of a product to bfloat16 would cost."""
    x = inputs(2, 64, torch.bfloat16)
    rounded = (x[:, :, None] * x[:, None, :]).double().sum(0)
    exact = x.double().T @ x.double()
    assert bool(((rounded - exact).abs() > bound([x])).any())


def test_adds_to_what_is_there_in_place() -> None:
    x = inputs(10, 8, torch.float32)
    hessian = torch.full((8, 8), 2.0)
    address = hessian.data_ptr()
    accumulate_hessian(hessian, x)
    assert hessian.data_ptr() == address
    fresh = torch.zeros(8, 8)
    accumulate_hessian(fresh, x)
    assert torch.allclose(hessian, fresh + 2, rtol=1e-6)


def test_no_tokens_change_nothing() -> None:
    hessian = torch.eye(8)
    accumulate_hessian(hessian, torch.zeros(0, 8))
    assert torch.equal(hessian, torch.eye(8))


def test_the_input_is_left_alone() -> None:
    x = inputs(10, 8, torch.float32)
    before = x.clone()
    accumulate_hessian(torch.zeros(8, 8), x)
    assert torch.equal(x, before)


def test_a_batch_in_pieces_gives_the_same_sum_within_rounding() -> None:
    x = inputs(128, 32, torch.float32)
    whole, pieces = torch.zeros(32, 32), torch.zeros(32, 32)
    accumulate_hessian(whole, x)
    for piece in x.split(10):
        accumulate_hessian(pieces, piece)
    assert bool(((whole - pieces).double().abs() <= 2 * bound(list(x.split(10)))).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_keeps_torchs_rules(dtype: torch.dtype) -> None:
    torch.library.opcheck(accumulate_hessian, (torch.zeros(8, 8), inputs(4, 8, dtype)))
