"""GPTQ by importance across groups: better than inside them, sound on everything a broken layer can hand it."""

import pytest
import torch

from hubquant.quantize.actorder import solve_regrouped, solve_static
from hubquant.quantize.gptq import DAMP_RATIO, solve
from hubquant.quantize.grid import Grid, round_to_nearest
from hubquant.quantize.order import channel_order

from .test_gptq import NEAR_TIE, WEIGHTS, broken_hessians, check_sound, error, problem, textbook

BOTH = pytest.mark.parametrize("solver", [solve_static, solve_regrouped])


@pytest.mark.parametrize("grid", [Grid(4, 128, True), Grid(4, 32, False), Grid(2, 64, True), Grid(8, 64, False)], ids=str)
def test_every_code_is_the_one_of_the_textbook_in_order_of_importance(grid: Grid) -> None:
    weight, hessian = problem(0, width=256)
    quantized = solve_static(weight, hessian, grid, sweeps=0)
    check_sound(quantized)
    excess = textbook(weight, hessian, quantized, channel_order(hessian.diagonal()))
    assert float(excess.max()) <= NEAR_TIE * grid.max_code / 15


@pytest.mark.parametrize("solver", [solve, solve_static, solve_regrouped])
@pytest.mark.parametrize("tokens", [24, 600])
def test_the_losses_are_what_is_lost(solver: object, tokens: int) -> None:
    """Up to the roundings of sums that have the damping in them, which is taken off."""
    assert callable(solver)
    weight, hessian = problem(3, width=256, tokens=tokens)
    hessian[5], hessian[:, 5] = 0.0, 0.0
    quantized = solver(weight, hessian, Grid(4, 64, False))
    delta = (quantized.dequantize() - weight).double()
    exact = ((delta @ hessian.double()) * delta).sum(1)
    damping = DAMP_RATIO * hessian.diagonal().double().mean() * delta.square().sum(1)
    assert bool(((quantized.losses - exact).abs() <= 256 * 2.0**-24 * (exact + damping)).all())
    parts = quantized.split([10, len(weight) - 10])
    assert torch.equal(torch.cat([part.losses for part in parts]), quantized.losses)


@BOTH
def test_never_worse_than_rounding_and_regrouped_on_the_whole_better_than_inside_the_groups(solver: object) -> None:
    assert callable(solver)
    of_rounding, of_groups = [], []
    for seed in range(30):
        group_size, bits, tokens = (32, 64, 128)[seed % 3], (4, 3, 2)[seed // 3 % 3], (24, 100, 600)[seed // 9 % 3]
        weight, hessian = problem(seed, width=256, tokens=tokens)
        grid = Grid(bits, group_size, symmetric=seed % 2 == 0)
        found = error(weight, solver(weight, hessian, grid), hessian)
        of_rounding.append(found / error(weight, round_to_nearest(weight, grid), hessian))
        of_groups.append(found / error(weight, solve(weight, hessian, grid), hessian))
    assert max(of_rounding) <= 1
    # of static groups one scale is tried and not several, so that the usual way is ahead of them
    assert solver is solve_static or sum(of_groups) / len(of_groups) < 1


@pytest.mark.parametrize("group_size", [64, 256])
def test_asking_again_takes_more_off(group_size: int) -> None:
    weight, hessian = problem(5, width=256)
    grid = Grid(4, group_size, True)
    once, again = (error(weight, solve_static(weight, hessian, grid, sweeps=sweeps), hessian) for sweeps in (0, 3))
    assert again < once


def test_a_whole_row_is_one_group() -> None:
    weight, hessian = problem(3, width=320)  # neither a power of two nor a whole number of blocks
    quantized = solve_static(weight, hessian, Grid(4, 320, True))
    check_sound(quantized)
    assert quantized.scales.shape == (16, 1) and quantized.group_index.tolist() == [0] * 320
    assert error(weight, quantized, hessian) < error(weight, round_to_nearest(weight, Grid(4, 320, True)), hessian) / 2


def test_regrouped_channels_are_decoded_by_their_own_scale() -> None:
    weight, hessian = problem(4, width=128)
    quantized = solve_regrouped(weight, hessian, Grid(8, 32, True))
    assert not torch.equal(quantized.group_index, torch.arange(128) // 32)
    assert float((quantized.dequantize() - weight).square().sum() / weight.square().sum()) < 1e-3
    first, second = quantized.split([6, 10])
    assert torch.equal(torch.cat([first.dequantize(), second.dequantize()]), quantized.dequantize())


@BOTH
@pytest.mark.parametrize("name", broken_hessians())
def test_no_hessian_breaks_it(name: str, solver: object) -> None:
    assert callable(solver)
    check_sound(solver(problem(12)[0], broken_hessians()[name], Grid(4, 64, True)))


@pytest.mark.parametrize("name", WEIGHTS)
def test_no_weight_breaks_it(name: str) -> None:
    check_sound(solve_static(WEIGHTS[name], problem(13)[1], Grid(4, 64, False)))
