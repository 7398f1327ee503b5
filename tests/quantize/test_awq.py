"""AWQ's channel scales: the loss is what is to be expected, error feedback is better under them, shared channels share."""

import pytest
import torch
from torch import Tensor

from hubquant.calibrate.statistics import InputStatistics
from hubquant.quantize.awq import expected_loss, search_scale
from hubquant.quantize.gptq import solve
from hubquant.quantize.grid import Grid

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


def remaining(x: Tensor) -> Tensor:
    """What the pass has of these activations."""
    statistics = InputStatistics(x.shape[1])
    statistics.add(x)
    return statistics.remaining


def loss(weights: list[Tensor], x: Tensor, s: Tensor, grid: Grid) -> float:
    """Σ‖x (Q(W·s)/s − W)ᵀ‖² from the activations themselves, in float64, for the Q that follows: with error feedback."""
    total, hessian = 0.0, (x / s).T @ (x / s)
    for weight in weights:
        delta = solve(weight * s, hessian, grid).dequantize().double() / s.double() - weight.double()
        total += float((x.double() @ delta.T).square().sum())
    return total


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_better_than_no_scale_where_channels_are_loud(grid: Grid) -> None:
    ratios = []
    for seed in range(8):
        x, weights = inputs(300, 64, seed), matrices(seed)
        s = search_scale(weights, remaining(x), grid)
        ratios.append(loss(weights, x, s, grid) / loss(weights, x, torch.ones(64), grid))
    assert max(ratios) < 1
    assert sum(ratios) / len(ratios) < 0.7


def test_what_is_expected_of_a_scale_is_the_loss_of_uniform_errors() -> None:
    """Twelve times the mean of Σ remaining·δ², where δ·s is uniform within half a step of its group: a sample of 4,000 of each."""
    x, weight, grid = inputs(300, 64, seed=3), matrices(3)[0], GRIDS[0]
    left, s = remaining(x), torch.rand(64, generator=torch.Generator().manual_seed(5)) + 0.5
    steps = grid_steps(weight * s, grid)
    uniform = torch.rand(4000, *weight.shape, generator=torch.Generator().manual_seed(6)) - 0.5
    losses = ((uniform * steps / s).square() @ left).sum(1)
    deviation = float(losses.std()) / 4000**0.5
    assert abs(expected_loss(weight, s, left, grid) / 12 - float(losses.mean())) < 4 * deviation


def grid_steps(weight: Tensor, grid: Grid) -> Tensor:
    """The step of each weight's group before any search, [out, in]: its range by the number of steps."""
    groups = weight.unflatten(1, (-1, grid.group_size))
    width = groups.amax(2).clamp_min(0) - groups.amin(2).clamp_max(0)
    return (width / grid.max_code).half().float().repeat_interleave(grid.group_size, 1)


def test_loud_channels_are_scaled_up() -> None:
    x = inputs(300, 64, seed=2)
    s = search_scale(matrices(2), remaining(x), GRIDS[0])
    loud = torch.zeros(64, dtype=torch.bool)
    loud[::16] = True
    assert float(s[loud].min()) > 1.5 * float(s[~loud].mean())


def test_equal_channels_are_left_as_they_are() -> None:
    x = torch.eye(64)
    assert torch.equal(search_scale(matrices(3), remaining(x), GRIDS[0]), torch.ones(64))


def test_all_weights_that_read_the_input_count() -> None:
    """The scale that is best for one of two matrices is not the best for both; the sum decides."""
    x, weights = inputs(300, 64, seed=4), matrices(4)
    weights[1] = weights[1] * 100
    both = search_scale(weights, remaining(x), GRIDS[0])
    second = search_scale(weights[1:], remaining(x), GRIDS[0])
    assert loss(weights, x, both, GRIDS[0]) <= loss(weights, x, second, GRIDS[0]) * (1 + 1e-5)
    assert torch.equal(both, second)  # the second outweighs the first ten thousand times


def test_channels_with_one_source_share_one_scale() -> None:
    """Grouped-query attention: heads of width 4, each value head read by two query heads; one copy is silent."""
    x = inputs(300, 64, seed=5)
    channels = torch.arange(32).view(8, 1, 4).expand(-1, 2, -1).reshape(-1)
    x[:, 4] = 0
    s = search_scale(matrices(5), remaining(x), GRIDS[0], channels)
    assert float(s.max() / s.min()) > 1.5
    for source in range(32):
        assert len(set(s[channels == source].tolist())) == 1


def test_channels_that_are_never_active_are_not_scaled() -> None:
    x = inputs(300, 64, seed=6)
    x[:, [3, 40]] = 0
    s = search_scale(matrices(6), remaining(x), GRIDS[0])
    assert s[[3, 40]].tolist() == [1.0, 1.0]
    assert not torch.equal(s, torch.ones(64))


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-10, 1e10, 1e15])
def test_scales_are_finite_and_bounded_for_activations_of_any_size(size: float) -> None:
    x = inputs(100, 64, seed=7) * size
    s = search_scale(matrices(7), remaining(x), GRIDS[0])
    assert bool(torch.isfinite(s).all())
    assert float(s.min()) >= 1e-3
    assert float(s.max()) <= 1e3


def test_without_weights_nothing_is_scaled() -> None:
    """Linears that stay in 16 bit gain nothing from a scale."""
    x = inputs(100, 64, seed=8)
    assert torch.equal(search_scale([], remaining(x), GRIDS[0]), torch.ones(64))


def test_the_same_input_gives_the_same_scale_and_the_sums_are_left_alone() -> None:
    x, weights = inputs(100, 64, seed=9), matrices(9)
    left = remaining(x)
    before = left.clone(), weights[0].clone()
    first, second = (search_scale(weights, left, GRIDS[0]) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(before, (left, weights[0]), strict=True))
