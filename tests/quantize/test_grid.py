"""Grids: rounding to the nearest point, and ranges chosen by search, which are never worse than where the search began."""

import pytest
import torch
from torch import Tensor

from hubquant.quantize.grid import SMALLEST_SCALE, Grid, QuantizedWeight, fit_group, round_to_grid, round_to_nearest

GRIDS = [Grid(bits, 32, symmetric) for bits in (2, 4, 8) for symmetric in (True, False)]
INT4 = [Grid(4, 32, True), Grid(4, 32, False)]


def weights(out: int, n: int, seed: int) -> Tensor:
    """Rows of different width, some with an outlier, some one-sided, one constant, one zero."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, n, generator=random) * torch.logspace(-3, 0, out)[:, None]
    weight[::4, 3] *= 20
    weight[1::4] = weight[1::4].abs()
    weight[2::8] = -weight[2::8].abs()
    weight[-1], weight[-2] = 0.25, 0.0
    return weight


def metric(n: int, seed: int) -> Tensor:
    """A Cholesky factor of the Hessian of correlated inputs with loud channels."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * n, n, generator=random) @ torch.randn(n, n, generator=random)
    x *= torch.exp(torch.randn(n, generator=random))
    return torch.linalg.cholesky((x.T @ x).double()).float()


def loss(weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid, by: Tensor) -> Tensor:
    """‖(Q(w) − w) M‖² of every row in float64."""
    points = (round_to_grid(weight, scale, zero, grid.max_code) - zero) * scale
    return ((points - weight).double() @ by.double()).square().sum(1)


def test_the_numbers_of_a_grid() -> None:
    assert (Grid(4, 128, True).max_code, Grid(4, 128, True).middle) == (15, 8)
    assert (Grid(2, 128, True).max_code, Grid(8, 128, True).middle) == (3, 128)


def test_dequantize_is_code_minus_zero_times_scale() -> None:
    codes = torch.tensor([[0, 15, 8, 3]], dtype=torch.uint8)
    weight = QuantizedWeight(
        codes, torch.tensor([[0.5, -2.0]]).half(), torch.tensor([[8, 1]], dtype=torch.uint8), Grid(4, 2, False)
    )
    assert weight.dequantize().tolist() == [[-4.0, 3.5, -14.0, -4.0]]
    assert weight.group_index.tolist() == [0, 0, 1, 1]
    assert weight.group_index.dtype == torch.int32


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rounding_to_nearest_errs_by_at_most_a_step(grid: Grid) -> None:
    """Half a step inside the range; up to one at its end, where a symmetric grid has one point less."""
    weight = weights(16, 96, seed=0)
    quantized = round_to_nearest(weight, grid)
    step = quantized.scales.float().abs().repeat_interleave(grid.group_size, dim=1)
    error = (quantized.dequantize() - weight).abs()
    assert bool((error <= step * (1 + grid.max_code * 2.0**-11)).all())  # the scale itself is rounded to float16
    inside = (quantized.codes > 0) & (quantized.codes < grid.max_code)
    assert bool((error[inside] <= step[inside] * (0.5 + 2.0**-10)).all())
    assert int(quantized.codes.max()) <= grid.max_code


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weights_on_a_grid_are_kept_exactly(grid: Grid) -> None:
    random = torch.Generator().manual_seed(1)
    codes = torch.randint(0, grid.max_code + 1, (8, 32), generator=random)
    codes[:, 0], codes[:, 1] = 0, grid.max_code
    zero = grid.middle if grid.symmetric else 1
    scale = 2.0 ** torch.arange(-8, 0)[:, None] * torch.tensor([1.0, -1.0] * 4)[:, None] ** int(grid.symmetric)
    weight = (codes - zero) * scale
    assert torch.equal(round_to_nearest(weight, grid).dequantize(), weight)
    found_scale, found_zero = fit_group(weight, grid, metric(32, seed=1))
    assert torch.equal((round_to_grid(weight, found_scale, found_zero, grid.max_code) - found_zero) * found_scale, weight)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_searched_range_is_never_worse_than_the_full_one(grid: Grid) -> None:
    """Up to the rounding of the losses that the search compares: γ_n of float32 for a product with a 32 × 32 metric."""
    for seed in range(8):
        weight, by = weights(24, 32, seed), metric(32, seed)
        start = round_to_nearest(weight, grid)
        started = loss(weight, start.scales.float(), start.zeros.float(), grid, by)
        found = loss(weight, *fit_group(weight, grid, by), grid, by)
        error = (start.dequantize() - weight).double().abs() @ by.double().abs()
        slack = 2 * 66 * 2.0**-24 * error.square().sum(1)
        assert bool((found <= started + slack).all())


@pytest.mark.parametrize("grid", INT4, ids=str)
def test_the_search_pays(grid: Grid) -> None:
    weight, by = weights(64, 32, seed=3)[:-2], metric(32, seed=3)
    start = round_to_nearest(weight, grid)
    started = loss(weight, start.scales.float(), start.zeros.float(), grid, by)
    assert float((loss(weight, *fit_group(weight, grid, by), grid, by) / started).mean()) < 0.8


@pytest.mark.parametrize("grid", INT4, ids=str)
def test_the_metric_decides(grid: Grid) -> None:
    """A channel that nothing sees costs nothing: its outlier may be cut off for the others' sake, and is."""
    weight = weights(16, 32, seed=4)[:-2]
    weight[:, 5] *= 10
    blind = torch.eye(32)
    blind[5, 5] = 1e-4
    scale, zero = fit_group(weight, grid, blind)
    seen, _ = fit_group(weight, grid, torch.eye(32))
    assert float((scale.abs() / seen.abs()).median()) < 0.8
    assert bool((loss(weight, scale, zero, grid, blind) <= loss(weight, seen, zero, grid, blind) + 1e-12).all())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_scales_are_float16_and_zeros_are_codes(grid: Grid) -> None:
    weight = torch.cat([weights(16, 32, seed=5), 1e-7 * weights(4, 32, seed=6), 1e6 * weights(4, 32, seed=7)])
    scale, zero = fit_group(weight, grid, metric(32, seed=5))
    assert torch.equal(scale.half().float(), scale)
    assert bool((scale.abs() >= SMALLEST_SCALE).all())
    assert torch.equal(zero, zero.round())
    assert bool(((zero >= 0) & (zero <= grid.max_code)).all())
    if grid.symmetric:
        assert bool((zero == grid.middle).all())
    else:
        assert bool((scale > 0).all())


def test_a_symmetric_scale_has_the_sign_that_gives_the_wider_side_the_extra_point() -> None:
    weight = torch.tensor([[8.0, -7.0, 3.0, 0.0], [-8.0, 7.0, 3.0, 0.0]])
    grid = Grid(4, 4, True)
    scale, _ = fit_group(weight, grid, torch.eye(4))
    assert scale[:, 0].tolist() == [-1.0, 1.0]
    assert torch.equal(round_to_nearest(weight, grid).dequantize(), weight)


@pytest.mark.parametrize("grid", INT4, ids=str)
@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-40, 1e-10, 0.3, -0.3, 1e5, -1e20, 1e38])
def test_constant_rows_of_any_size_give_finite_scales_and_codes_in_range(grid: Grid, value: float) -> None:
    weight = torch.full((3, 32), value)
    for scale, zero in (fit_group(weight, grid, metric(32, seed=8)), _searched(round_to_nearest(weight, grid))):
        codes = round_to_grid(weight, scale, zero, grid.max_code)
        assert bool(torch.isfinite(scale).all())
        assert bool(((codes >= 0) & (codes <= grid.max_code)).all())
        if 1e-3 < abs(value) < 1e4:
            assert torch.allclose((codes - zero) * scale, weight, rtol=2.0**-11)


def _searched(quantized: QuantizedWeight) -> tuple[Tensor, Tensor]:
    return quantized.scales.float(), quantized.zeros.float()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_scaled_weights_have_scaled_ranges(grid: Grid) -> None:
    """Powers of two change no rounding, as long as the scales stay normal in float16."""
    weight, by = weights(16, 32, seed=9)[8:14], metric(32, seed=9)
    scale, zero = fit_group(weight, grid, by)
    for factor in (0.25, 8.0):
        other, other_zero = fit_group(weight * factor, grid, by)
        assert torch.equal(other, scale * factor)
        assert torch.equal(other_zero, zero)


@pytest.mark.parametrize("grid", INT4, ids=str)
def test_the_same_group_gives_the_same_range(grid: Grid) -> None:
    weight, by = weights(16, 32, seed=10), metric(32, seed=10)
    first, second = fit_group(weight, grid, by), fit_group(weight.clone(), grid, by.clone())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
