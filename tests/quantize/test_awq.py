"""AWQ's channel scales: the loss is the real one, the choice is never worse than none, shared channels share."""

import pytest
import torch
from torch import Tensor

from hubquant.quantize.awq import search_scale
from hubquant.quantize.grid import Grid, round_to_nearest

GRIDS = [Grid(4, 32, False), Grid(4, 32, True)]


def inputs(tokens: int, width: int, seed: int) -> Tensor:
    """Activations with a few channels that are much louder than the rest: what AWQ is for."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=random) @ torch.randn(width, width, generator=random) / width**0.5
    x[:, :: width // 4] *= 30
    return x


def matrices(seed: int, width: int = 64) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed + 100)
    return [0.02 * torch.randn(rows, width, generator=random) for rows in (24, 8)]


def loss(weights: list[Tensor], x: Tensor, s: Tensor, grid: Grid) -> float:
    """Σ‖x (Q(W·s)/s − W)ᵀ‖² from the activations themselves, in float64."""
    total = 0.0
    for weight in weights:
        delta = round_to_nearest(weight * s, grid).dequantize().double() / s.double() - weight.double()
        total += float((x.double() @ delta.T).square().sum())
    return total


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_never_worse_than_no_scale_and_better_where_channels_are_loud(grid: Grid) -> None:
    ratios = []
    for seed in range(8):
        x, weights = inputs(300, 64, seed), matrices(seed)
        s = search_scale(weights, x.T @ x, x.abs().mean(0), grid)
        ratios.append(loss(weights, x, s, grid) / loss(weights, x, torch.ones(64), grid))
    assert max(ratios) <= 1 + 1e-5
    assert sum(ratios) / len(ratios) < 0.7


def test_loud_channels_are_scaled_up() -> None:
    x = inputs(300, 64, seed=2)
    s = search_scale(matrices(2), x.T @ x, x.abs().mean(0), GRIDS[0])
    loud = torch.zeros(64, dtype=torch.bool)
    loud[::16] = True
    assert float(s[loud].min()) > 1.5 * float(s[~loud].mean())


def test_equal_channels_are_left_as_they_are() -> None:
    x = torch.eye(64)
    assert torch.equal(search_scale(matrices(3), x, torch.ones(64), GRIDS[0]), torch.ones(64))


def test_all_weights_that_read_the_input_count() -> None:
    """The scale that is best for one of two matrices is not the best for both; the sum decides."""
    x, weights = inputs(300, 64, seed=4), matrices(4)
    weights[1] = weights[1] * 100
    both = search_scale(weights, x.T @ x, x.abs().mean(0), GRIDS[0])
    second = search_scale(weights[1:], x.T @ x, x.abs().mean(0), GRIDS[0])
    assert loss(weights, x, both, GRIDS[0]) <= loss(weights, x, second, GRIDS[0]) * (1 + 1e-5)
    assert torch.equal(both, second)  # the second outweighs the first ten thousand times


def test_channels_with_one_source_share_one_scale() -> None:
    """Grouped-query attention: heads of width 4, each value head read by two query heads; one copy is silent."""
    x = inputs(300, 64, seed=5)
    channels = torch.arange(32).view(8, 1, 4).expand(-1, 2, -1).reshape(-1)
    x[:, 4] = 0
    s = search_scale(matrices(5), x.T @ x, x.abs().mean(0), GRIDS[0], channels)
    assert float(s.max() / s.min()) > 1.5
    for source in range(32):
        assert len(set(s[channels == source].tolist())) == 1


def test_channels_that_are_never_active_are_not_scaled() -> None:
    x = inputs(300, 64, seed=6)
    x[:, [3, 40]] = 0
    s = search_scale(matrices(6), x.T @ x, x.abs().mean(0), GRIDS[0])
    assert s[[3, 40]].tolist() == [1.0, 1.0]
    assert not torch.equal(s, torch.ones(64))


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-10, 1e10, 1e15])
def test_scales_are_finite_and_bounded_for_activations_of_any_size(size: float) -> None:
    x = inputs(100, 64, seed=7) * size
    s = search_scale(matrices(7), x.T @ x, x.abs().mean(0), GRIDS[0])
    assert bool(torch.isfinite(s).all())
    assert float(s.min()) >= 1e-3
    assert float(s.max()) <= 1e3


def test_without_weights_nothing_is_scaled() -> None:
    """Linears that stay in 16 bit gain nothing from a scale."""
    x = inputs(100, 64, seed=8)
    assert torch.equal(search_scale([], x.T @ x, x.abs().mean(0), GRIDS[0]), torch.ones(64))


def test_the_same_input_gives_the_same_scale_and_the_sums_are_left_alone() -> None:
    x, weights = inputs(100, 64, seed=9), matrices(9)
    hessian, mean_abs = x.T @ x, x.abs().mean(0)
    before = hessian.clone(), mean_abs.clone(), weights[0].clone()
    first, second = (search_scale(weights, hessian, mean_abs, GRIDS[0]) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(before, (hessian, mean_abs, weights[0]), strict=True))
