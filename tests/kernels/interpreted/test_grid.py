"""The search for a group's range in Triton: as good as the definition's, by the loss that both make small."""

import pytest
import torch
from hubquant_kernels import grid as definition
from hubquant_kernels.gpu import grid as kernel
from torch import Tensor

GRIDS = [(bits, symmetric) for bits in (2, 4, 8) for symmetric in (True, False)]
HALF = 2.0**-11  # unit roundoff of fp16


def weights(out: int, n: int, seed: int) -> Tensor:
    """Rows of different width, some with an outlier, some one-sided, one constant, one zero."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, n, generator=random) * torch.logspace(-3, 0, out)[:, None]
    weight[::4, min(3, n - 1)] *= 20
    weight[1::4] = weight[1::4].abs()
    weight[2::8] = -weight[2::8].abs()
    weight[-1], weight[-2] = 0.25, 0.0
    return weight


def metric(n: int, seed: int) -> Tensor:
    """The diagonal of a Cholesky factor, as GPTQ's is, of correlated inputs with loud channels."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * n, n, generator=random) @ torch.randn(n, n, generator=random)
    x *= torch.exp(torch.randn(n, generator=random))
    hessian = (x.T @ x).double() + 0.05 * (x.T @ x).diagonal().mean() * torch.eye(n)
    return torch.linalg.cholesky(hessian).diagonal().float()


def loss(weight: Tensor, scale: Tensor, zero: Tensor, bits: int, by: Tensor) -> Tensor:
    """Σ ((Q(w) − w)·metric)² of every row in float64."""
    error = ((definition.round_to_grid(weight, scale, zero, 2**bits - 1) - zero) * scale - weight).double()
    return (error * by.double()).square().sum(1)


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
@pytest.mark.parametrize(("out", "n"), [(20, 32), (5, 24)])
def test_no_scale_of_the_search_is_better_by_more_than_rounding_hides(out: int, n: int, bits: int, symmetric: bool) -> None:
    """A loss is a sum of n positive terms of six roundings each, the metric's share among them."""
    weight, by = weights(out, n, seed=out), metric(n, seed=n)
    scale, zero = kernel.fit_group(weight, by, bits, symmetric)
    found = loss(weight, scale, zero, bits, by)
    one, its_zero = definition.group_range(weight, bits, symmetric)
    tried = [(one, its_zero)]
    for step in range(1, definition.SHRINK_STEPS + 1):
        tried += definition._candidates(weight, bits, symmetric, 1 - 0.5 * step / definition.SHRINK_STEPS)
    for candidate in tried:
        assert bool((found <= loss(weight, *candidate, bits, by) * (1 + 2 * (n + 6) * 2.0**-24) + 1e-30).all())


@pytest.mark.parametrize("symmetric", [True, False])
def test_losses_are_the_definitions_on_average(symmetric: bool) -> None:
    """Where two scales are equally good but for rounding, a row may get either, and the refit goes on from there."""
    weight, by = weights(96, 64, seed=2)[:-2], metric(64, seed=3)
    found = loss(weight, *kernel.fit_group(weight, by, 4, symmetric), 4, by)
    expected = loss(weight, *definition.fit_group(weight, by, 4, symmetric), 4, by)
    assert abs(float((found / expected).mean()) - 1) < 2 * HALF
    started = loss(weight, *definition.group_range(weight, 4, symmetric), 4, by)
    assert float((found / started).mean()) < 0.9


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_a_metric_of_nothing_leaves_the_full_range(bits: int, symmetric: bool) -> None:
    """No candidate is better than another, so the first stays: exactly the definition's, but for the sign of a row of zeros."""
    weight = torch.cat([weights(14, 16, seed=4), torch.tensor([[1.0, -1.0] * 8, [-1.0, 1.0] * 8])])
    scale, zero = kernel.fit_group(weight, torch.zeros(16), bits, symmetric)
    expected, its_zero = definition.group_range(weight, bits, symmetric)
    assert torch.equal(scale.abs(), expected.abs())
    assert torch.equal(scale[weight.abs().amax(1) > 0], expected[weight.abs().amax(1) > 0])
    assert torch.equal(zero, its_zero)


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-40, 1e-10, 0.3, -0.3, 1e5, -1e20])
@pytest.mark.parametrize("symmetric", [True, False])
def test_constant_rows_of_any_size_give_storable_scales(symmetric: bool, value: float) -> None:
    weight = torch.full((3, 16), value)
    scale, zero = kernel.fit_group(weight, metric(16, seed=8), 4, symmetric)
    assert torch.equal(scale.half().float(), scale)
    assert bool((scale.abs() >= definition.SMALLEST_SCALE).all())
    assert bool(((zero >= 0) & (zero <= 15) & (zero == zero.round())).all())
    if 1e-3 < abs(value) < 1e4:
        codes = definition.round_to_grid(weight, scale, zero, 15)
        assert torch.allclose((codes - zero) * scale, weight, rtol=HALF)


def test_a_batch_is_its_matrices_one_by_one() -> None:
    weight, by = torch.stack([weights(18, 16, seed) for seed in range(2)]), torch.stack([metric(16, seed) for seed in range(2)])
    scale, zero = kernel.fit_group(weight, by, 4, False)
    for i in range(2):
        one, its_zero = kernel.fit_group(weight[i], by[i], 4, False)
        assert torch.equal(scale[i], one)
        assert torch.equal(zero[i], its_zero)


def test_a_metric_of_any_size_gives_the_same_scales() -> None:
    """Its squares stay in range whatever the activations' size, since it is divided by its largest entry."""
    weight, by = weights(16, 16, seed=5), metric(16, seed=5)
    expected, its_zero = kernel.fit_group(weight, by, 4, False)
    for factor in (2.0**-100, 2.0**100):
        scale, zero = kernel.fit_group(weight, by * factor, 4, False)
        assert torch.equal(scale, expected)
        assert torch.equal(zero, its_zero)
