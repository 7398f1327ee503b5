"""The losses of AWQ's scales: those of the activations themselves."""

import pytest
import torch
from hubquant_kernels.awq_search import BLOCK, awq_losses, quadratic_form, rounding_error
from torch import Tensor


def inputs(tokens: int, width: int, seed: int) -> Tensor:
    """Activations with a few channels that are much louder than the rest: what AWQ is for."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=random) @ torch.randn(width, width, generator=random) / width**0.5
    x[:, :: width // 4] *= 30
    return x


def problem(out: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """A weight and three scales."""
    random = torch.Generator().manual_seed(seed)
    return 0.02 * torch.randn(out, width, generator=random), torch.exp(torch.randn(3, width, generator=random))


@pytest.mark.parametrize("width", [BLOCK - 1, BLOCK, 2 * BLOCK + 76])
def test_each_pair_of_columns_counts_twice(width: int) -> None:
    """γ_n Σ|Δ||H||Δ|ᵀ: a product of three numbers, with at most `in` sums in a first product and all that follow in a second."""
    x, delta = inputs(200, width, seed=3), 0.02 * torch.randn(5, width, generator=torch.Generator().manual_seed(4))
    hessian = x.T @ x
    exact, size = (
        float(((d @ h) * d).sum()) for d, h in ((delta.double(), hessian.double()), (delta.double().abs(), hessian.double().abs()))
    )
    assert abs(float(quadratic_form(delta, hessian)) - exact) <= (2 * width + 5 + 6) * 2.0**-24 * size


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_loss_from_the_hessian_is_that_of_the_activations(symmetric: bool) -> None:
    """tr(ΔHΔᵀ) = Σ‖xΔᵀ‖². Each of in² products is rounded in H (tokens sums) and in two products (in sums each)."""
    x, (weight, scales) = inputs(200, 64, seed=0), problem(24, 64, seed=1)
    losses = awq_losses(weight, x.T @ x, scales, 4, 32, symmetric)
    magnitude = x.double().abs().T @ x.double().abs()
    for s, loss in zip(scales, losses, strict=True):
        delta = rounding_error(weight, s, 4, 32, symmetric).double()
        expected = float((x.double() @ delta.T).square().sum())
        tolerance = (200 + 2 * 64 + 24) * 2.0**-24 * float(((delta.abs() @ magnitude) * delta.abs()).sum())
        assert tolerance < 0.05 * expected
        assert abs(float(loss) - expected) <= tolerance


def test_the_error_is_at_most_half_a_step_over_the_scale() -> None:
    """Δ = Q(W·s)/s − W: an asymmetric grid spans its group, so W·s is off by half a step, and the zero by as much at an end."""
    weight, scales = problem(8, 64, seed=2)
    delta = rounding_error(weight, scales[0], 4, 32, False)
    groups = (weight * scales[0]).view(8, 2, 32)
    step = (groups.amax(2).clamp_min(0) - groups.amin(2).clamp_max(0)) / 15
    assert bool(((delta * scales[0]).view(8, 2, 32).abs() <= step[..., None] * 1.01).all())


def test_a_scale_of_one_is_plain_rounding_and_powers_of_two_of_whole_groups_change_nothing() -> None:
    weight, _ = problem(8, 64, seed=3)
    plain = rounding_error(weight, torch.ones(64), 4, 32, True)
    doubled = rounding_error(weight, torch.tensor([2.0] * 32 + [4.0] * 32), 4, 32, True)
    assert torch.equal(plain, doubled)


def test_operator_keeps_torchs_rules() -> None:
    weight, scales = problem(4, 32, seed=4)
    torch.library.opcheck(awq_losses, (weight, torch.eye(32), scales, 4, 16, True))
