"""Ranges chosen by search: never worse than where the search began, on every grid."""

from typing import NamedTuple

import pytest
import torch
from hubquant_kernels import native
from hubquant_kernels.grid import SMALLEST_SCALE, fit_group, group_range, round_to_grid
from hubquant_kernels.native_columns import grid_losses
from torch import Tensor


class Grid(NamedTuple):
    bits: int
    symmetric: bool

    @property
    def max_code(self) -> int:
        return 2**self.bits - 1


GRIDS = [Grid(bits, symmetric) for bits in (2, 4, 8) for symmetric in (True, False)]
INT4 = [Grid(4, True), Grid(4, False)]


def fit(weight: Tensor, grid: Grid, by: Tensor) -> tuple[Tensor, Tensor]:
    return fit_group(weight, by, *grid)


def dequantized(weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    return (round_to_grid(weight, scale, zero, grid.max_code) - zero) * scale


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
    """The diagonal of a Cholesky factor of the Hessian of correlated inputs with loud channels."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * n, n, generator=random) @ torch.randn(n, n, generator=random)
    x *= torch.exp(torch.randn(n, generator=random))
    return torch.linalg.cholesky((x.T @ x).double()).diagonal().float()


def loss(weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid, by: Tensor) -> Tensor:
    """Σ ((Q(w) − w)·metric)² of every row in float64."""
    return ((dequantized(weight, scale, zero, grid) - weight).double() * by.double()).square().sum(1)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weights_on_a_grid_are_kept_exactly(grid: Grid) -> None:
    random = torch.Generator().manual_seed(1)
    codes = torch.randint(0, grid.max_code + 1, (8, 32), generator=random)
    codes[:, 0], codes[:, 1] = 0, grid.max_code
    zero = 2 ** (grid.bits - 1) if grid.symmetric else 1
    scale = 2.0 ** torch.arange(-8, 0)[:, None] * torch.tensor([1.0, -1.0] * 4)[:, None] ** int(grid.symmetric)
    weight = (codes - zero) * scale
    assert torch.equal(dequantized(weight, *group_range(weight, *grid), grid), weight)
    found_scale, found_zero = fit(weight, grid, metric(32, seed=1))
    assert torch.equal(dequantized(weight, found_scale, found_zero, grid), weight)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_searched_range_is_never_worse_than_the_full_one(grid: Grid) -> None:
    """Up to the rounding of the two losses that the search compares: of each term three operations, of a sum of 32 terms 31."""
    for seed in range(8):
        weight, by = weights(24, 32, seed), metric(32, seed)
        start = group_range(weight, *grid)
        started = loss(weight, *start, grid, by)
        found = loss(weight, *fit(weight, grid, by), grid, by)
        assert bool((found <= started * (1 + 2 * 35 * 2.0**-24)).all())


@pytest.mark.parametrize("grid", INT4, ids=str)
def test_the_search_pays(grid: Grid) -> None:
    weight, by = weights(64, 32, seed=3)[:-2], metric(32, seed=3)
    start = group_range(weight, *grid)
    started = loss(weight, *start, grid, by)
    assert float((loss(weight, *fit(weight, grid, by), grid, by) / started).mean()) < 0.8


@pytest.mark.parametrize("grid", INT4, ids=str)
def test_the_metric_decides(grid: Grid) -> None:
    """A channel that nothing sees costs nothing: its outlier may be cut off for the others' sake, and is."""
    weight = weights(16, 32, seed=4)[:-2]
    weight[:, 5] *= 10
    blind = torch.ones(32)
    blind[5] = 1e-4
    scale, zero = fit(weight, grid, blind)
    seen, _ = fit(weight, grid, torch.ones(32))
    assert float((scale.abs() / seen.abs()).median()) < 0.8
    assert bool((loss(weight, scale, zero, grid, blind) <= loss(weight, seen, zero, grid, blind) + 1e-12).all())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_scales_are_float16_and_zeros_are_codes(grid: Grid) -> None:
    weight = torch.cat([weights(16, 32, seed=5), 1e-7 * weights(4, 32, seed=6), 1e6 * weights(4, 32, seed=7)])
    scale, zero = fit(weight, grid, metric(32, seed=5))
    assert torch.equal(scale.half().float(), scale)
    assert bool((scale.abs() >= SMALLEST_SCALE).all())
    assert torch.equal(zero, zero.round())
    assert bool(((zero >= 0) & (zero <= grid.max_code)).all())
    if grid.symmetric:
        assert bool((zero == 2 ** (grid.bits - 1)).all())
    else:
        assert bool((scale > 0).all())


def test_a_symmetric_scale_has_the_sign_that_gives_the_wider_side_the_extra_point() -> None:
    weight = torch.tensor([[8.0, -7.0, 3.0, 0.0], [-8.0, 7.0, 3.0, 0.0]])
    grid = Grid(4, True)
    scale, _ = fit(weight, grid, torch.ones(4))
    assert scale[:, 0].tolist() == [-1.0, 1.0]
    assert torch.equal(dequantized(weight, *group_range(weight, *grid), grid), weight)


@pytest.mark.parametrize("grid", INT4, ids=str)
@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-40, 1e-10, 0.3, -0.3, 1e5, -1e20, 1e38])
def test_constant_rows_of_any_size_give_finite_scales_and_codes_in_range(grid: Grid, value: float) -> None:
    weight = torch.full((3, 32), value)
    for scale, zero in (fit(weight, grid, metric(32, seed=8)), group_range(weight, *grid)):
        codes = round_to_grid(weight, scale, zero, grid.max_code)
        assert bool(torch.isfinite(scale).all())
        assert bool(((codes >= 0) & (codes <= grid.max_code)).all())
        if 1e-3 < abs(value) < 1e4:
            assert torch.allclose((codes - zero) * scale, weight, rtol=2.0**-11)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_scaled_weights_have_scaled_ranges(grid: Grid) -> None:
    """Powers of two change no rounding, as long as the scales stay normal in float16."""
    weight, by = weights(16, 32, seed=9)[8:14], metric(32, seed=9)
    scale, zero = fit(weight, grid, by)
    for factor in (0.25, 8.0):
        other, other_zero = fit(weight * factor, grid, by)
        assert torch.equal(other, scale * factor)
        assert torch.equal(other_zero, zero)


@pytest.mark.parametrize("grid", INT4, ids=str)
def test_the_same_group_gives_the_same_range(grid: Grid) -> None:
    weight, by = weights(16, 32, seed=10), metric(32, seed=10)
    first, second = fit(weight, grid, by), fit(weight.clone(), grid, by.clone())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_a_batch_is_its_matrices_one_by_one() -> None:
    weight, by = torch.stack([weights(8, 32, seed) for seed in range(3)]), torch.stack([metric(32, seed) for seed in range(3)])
    scale, zero = fit_group(weight, by, 4, False)
    for i in range(3):
        one, its_zero = fit_group(weight[i], by[i], 4, False)
        assert torch.equal(scale[i], one)
        assert torch.equal(zero[i], its_zero)


@pytest.mark.parametrize("grid", INT4, ids=str)
def test_operator_keeps_torchs_rules(grid: Grid) -> None:
    torch.library.opcheck(fit_group, (weights(4, 16, seed=0), metric(16, seed=0), *grid))
    torch.library.opcheck(fit_group, (weights(4, 16, seed=0)[None], metric(16, seed=0)[None], *grid))


@pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize(("out", "n", "bits"), [(1, 5, 4), (17, 30, 2), (300, 128, 4)])
def test_losses_in_machine_code_are_those_of_plain_torch(out: int, n: int, bits: int) -> None:
    """Their errors are the same numbers, and their terms; sums of n positive terms in another order differ by γ_n = n·2⁻²⁴ at most
    (Higham 2002, section 3.1)."""
    weight, by = weights(out + 2, n, seed=out), metric(n, seed=n)
    scales = torch.rand(5, out + 2, generator=torch.Generator().manual_seed(2)) * 0.1 + 0.01
    zeros = torch.randint(0, 2**bits, scales.shape, generator=torch.Generator().manual_seed(3)).float()
    found = grid_losses(weight, by, scales, zeros, 2**bits - 1)
    assert found is not None
    for losses, scale, zero in zip(found.double(), scales, zeros, strict=True):
        codes = round_to_grid(weight, scale[:, None], zero[:, None], 2**bits - 1)
        terms = (((codes - zero[:, None]) * scale[:, None] - weight) * by).square()
        assert bool(((losses - terms.double().sum(1)).abs() <= n * 2.0**-24 * 1.01 * losses).all())
