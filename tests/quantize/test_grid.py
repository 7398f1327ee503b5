"""Grids: what their numbers are, and rounding to the nearest point. The search for a range is in hubquant_kernels' tests."""

import pytest
import torch
from torch import Tensor

from hubquant.quantize.grid import Grid, QuantizedWeight, round_to_nearest

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
    codes = torch.randint(0, grid.max_code + 1, (8, 32), generator=torch.Generator().manual_seed(1))
    codes[:, 0], codes[:, 1] = 0, grid.max_code
    zero = grid.middle if grid.symmetric else 1
    scale = 2.0 ** torch.arange(-8, 0)[:, None] * torch.tensor([1.0, -1.0] * 4)[:, None] ** int(grid.symmetric)
    weight = (codes - zero) * scale
    assert torch.equal(round_to_nearest(weight, grid).dequantize(), weight)


@pytest.mark.parametrize("grid", INT4, ids=str)
@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-40, 1e-10, 0.3, -0.3, 1e5, -1e20, 1e38])
def test_constant_rows_of_any_size_give_finite_scales_and_codes_in_range(grid: Grid, value: float) -> None:
    weight = torch.full((3, 32), value)
    quantized = round_to_nearest(weight, grid)
    assert bool(torch.isfinite(quantized.scales).all())
    assert int(quantized.codes.max()) <= grid.max_code
    if 1e-3 < abs(value) < 1e4:
        assert torch.allclose(quantized.dequantize(), weight, rtol=2.0**-11)
