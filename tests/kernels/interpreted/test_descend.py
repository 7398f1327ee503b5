"""Coordinate descent in Triton: the codes of the definition, and a loss that does not rise."""

import pytest
import torch
from hubquant_kernels import descend as definition
from hubquant_kernels.gpu import descend as kernel
from torch import Tensor

TOP = 15


def problem(out: int, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Codes, gradient, hessian and steps of a block, and the errors [out, n] whose gradient it is."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * n, n, generator=random) @ torch.randn(n, n, generator=random)
    hessian = x.T @ x / (3 * n * n) + 0.1 * torch.eye(n)
    codes = torch.randint(0, TOP + 1, (out, n), generator=random).float()
    step = torch.where(torch.rand(out, n, generator=random) < 0.5, -1.0, 1.0) * (torch.rand(out, n, generator=random) + 0.1)
    errors = torch.randn(out, n, generator=random)
    return codes, errors @ hessian, hessian, step, errors


@pytest.mark.parametrize(("out", "n"), [(1, 16), (16, 16), (17, 33), (3, 128)])
def test_codes_are_the_definitions(out: int, n: int) -> None:
    """Every operation rounds as the definition's does, but where torch fuses a product into its sum: by 2⁻²⁴ of a gradient, so a
    code in a hundred thousand is as near to a tie, and what comes after it in its row may differ too."""
    codes, gradient, hessian, step, _ = problem(out, n, seed=n)
    found = kernel.descend_block(codes, gradient, hessian, step, TOP)
    expected = definition.descend_block(codes, gradient, hessian, step, TOP)
    assert found.dtype == torch.float32
    assert not torch.equal(found, codes)
    assert int((found != expected).any(1).sum()) <= out // 16


def test_the_loss_does_not_rise() -> None:
    """tr(EHEᵀ) in float64, row by row: each move is the best of one column, and a code at the edge stays inside."""
    codes, gradient, hessian, step, errors = problem(out=20, n=48, seed=1)
    found = kernel.descend_block(codes, gradient, hessian, step, TOP)
    after = errors.double() - ((found - codes) * step).double()
    before, now = ((e @ hessian.double() * e).sum(1) for e in (errors.double(), after))
    assert bool((now < before).all())
    assert bool(((found >= 0) & (found <= TOP) & (found == found.round())).all())


@pytest.mark.parametrize("diagonal", [0.0, 1e-40])
def test_a_column_without_a_diagonal_keeps_its_codes(diagonal: float) -> None:
    """Or with one whose inverse is no float32."""
    codes, gradient, hessian, step, _ = problem(out=5, n=16, seed=2)
    hessian[3], hessian[:, 3], gradient[:, 3] = 0, 0, 1
    hessian[3, 3] = diagonal
    found = kernel.descend_block(codes, gradient, hessian, step, TOP)
    assert torch.equal(found[:, 3], codes[:, 3])
    assert not torch.equal(found, codes)


def test_a_tie_goes_to_the_even_code() -> None:
    codes, gradient = torch.full((3, 1), 4.0), torch.tensor([[0.5], [1.5], [-0.5]])
    assert kernel.descend_block(codes, gradient, torch.ones(1, 1), torch.ones(3, 1), TOP).flatten().tolist() == [4.0, 6.0, 4.0]


def test_views_are_read_as_they_are() -> None:
    """Columns of a matrix, and steps that a group shares."""
    codes, gradient, hessian, _, _ = problem(out=6, n=32, seed=3)
    step = (torch.rand(6, 1) + 0.1).expand(6, 16)
    views = codes[:, 8:24], gradient[:, 8:24], hessian[8:24, 8:24], step
    whole = tuple(v.contiguous() for v in views)
    assert torch.equal(kernel.descend_block(*views, TOP), kernel.descend_block(*whole, TOP))
