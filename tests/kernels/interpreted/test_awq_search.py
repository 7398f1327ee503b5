"""AWQ's losses in Triton: rounding errors to the bit, quadratic forms within what float32 rounding allows."""

import pytest
import torch
from hubquant_kernels import awq_search as definition
from hubquant_kernels.gpu import awq_search as kernel
from torch import Tensor

UNIT = 2.0**-24


def problem(out: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight with an outlier, a constant row and a row of zeros; a Hessian of loud channels; three scales."""
    random = torch.Generator().manual_seed(seed)
    weight = 0.02 * torch.randn(out, width, generator=random)
    weight[0, 0] = 1.0
    if out > 2:
        weight[1], weight[2] = 0.3, 0.0
    x = torch.randn(3 * width, width, generator=random) * torch.exp(torch.randn(width, generator=random))
    return weight, x.T @ x, torch.exp(torch.randn(3, width, generator=random))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("out", "width", "group_size", "bits"), [(1, 16, 16, 4), (70, 96, 32, 4), (40, 96, 48, 2), (9, 64, 64, 8)])
def test_the_rounding_error_is_the_definitions_to_the_bit(
    out: int, width: int, group_size: int, bits: int, symmetric: bool
) -> None:
    weight, _, scales = problem(out, width, seed=out)
    mine = kernel.rounding_error(weight, scales[0], bits, group_size, symmetric)
    assert torch.equal(mine, definition.rounding_error(weight, scales[0], bits, group_size, symmetric))


@pytest.mark.parametrize(("out", "width", "group_size"), [(1, 16, 16), (65, 64, 32), (20, 160, 32), (70, 130, 10)])
def test_losses_are_quadratic_forms_of_the_error(out: int, width: int, group_size: int) -> None:
    """γ_n Σ|Δ||H||Δ|ᵀ: a product of three numbers, with `in` sums in the first product and all that follow in the second."""
    weight, hessian, scales = problem(out, width, seed=out)
    losses = kernel.awq_losses(weight, hessian, scales, 4, group_size, False)
    assert losses.shape == (3,)
    for s, loss in zip(scales, losses, strict=True):
        delta = definition.rounding_error(weight, s, 4, group_size, False).double()
        exact, size = (float(((d @ h) * d).sum()) for d, h in ((delta, hessian.double()), (delta.abs(), hessian.double().abs())))
        assert abs(float(loss) - exact) <= (2 * width + out + 6) * UNIT * size


def test_the_best_of_several_scales_is_the_definitions() -> None:
    weight = problem(30, 64, seed=7)[0][3:]
    loud = torch.ones(64)
    loud[::16] = 30.0
    hessian = torch.outer(loud, loud) * (torch.eye(64) + 0.01)
    scales = torch.stack([(loud / loud.mean()) ** ratio for ratio in (0.0, 0.25, 0.5, 0.75)])
    mine = kernel.awq_losses(weight, hessian, scales, 4, 32, True)
    assert int(mine.argmin()) == int(definition.awq_losses(weight, hessian, scales, 4, 32, True).argmin()) > 0
