"""GPTQ against the textbook in float64, against rounding to nearest, and on everything a broken layer can hand it."""

import pytest
import torch
from torch import Tensor

from hubquant.quantize.gptq import DAMP_RATIO, solve
from hubquant.quantize.grid import Grid, QuantizedWeight, round_to_nearest
from hubquant.quantize.order import channel_order

NEAR_TIE = 2e-3  # in steps: below this float32 may round to the other side of a half


def inputs(tokens: int, width: int, seed: int) -> Tensor:
    """Correlated activations with loud channels and a mean, as a transformer's are."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=random) @ torch.randn(width, width, generator=random) / width**0.5
    return (x + 0.3) * torch.exp(torch.randn(width, generator=random))


def problem(seed: int, out: int = 16, width: int = 128, tokens: int = 512) -> tuple[Tensor, Tensor]:
    x = inputs(tokens, width, seed)
    weight = 0.02 * torch.randn(out, width, generator=torch.Generator().manual_seed(seed + 1000))
    return weight, x.T @ x


def error(weight: Tensor, quantized: QuantizedWeight, hessian: Tensor) -> float:
    """tr(ΔHΔᵀ) in float64."""
    delta = (quantized.dequantize() - weight).double()
    return float(((delta @ hessian.double()) * delta).sum())


def check_sound(quantized: QuantizedWeight) -> None:
    grid = quantized.grid
    assert quantized.codes.dtype == quantized.zeros.dtype == torch.uint8
    assert quantized.scales.dtype == torch.float16
    assert int(quantized.codes.max()) <= grid.max_code
    assert int(quantized.zeros.max()) <= grid.max_code
    assert bool(torch.isfinite(quantized.scales).all())
    assert bool((quantized.scales != 0).all())
    assert bool(torch.isfinite(quantized.dequantize()).all())


def textbook(weight: Tensor, hessian: Tensor, quantized: QuantizedWeight, order: Tensor) -> Tensor:
    """The paper's equations (2) and (3) in float64, one channel after the other, the inverse shrunk by elimination.

    Channel i is quantized, the rest of W moves by −(w_i − q_i)/[H⁻¹]_ii · [H⁻¹]_i,: and row and column i leave H⁻¹.
    The chosen codes are followed; returned is how far each is, in steps, beyond half a step from the weight that it rounds.
    """
    W, H = weight.double().clone(), hessian.double()
    H = H + DAMP_RATIO * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    inverse = torch.linalg.inv(H)
    dense, excess = quantized.dequantize().double(), torch.empty_like(W)
    for i in order.tolist():
        group = i // quantized.grid.group_size
        scale, zero = quantized.scales[:, group].double(), quantized.zeros[:, group].double()
        target = torch.clamp(W[:, i] / scale + zero, 0, quantized.grid.max_code)
        excess[:, i] = (quantized.codes[:, i].double() - target).abs() - 0.5
        W -= ((W[:, i] - dense[:, i]) / inverse[i, i])[:, None] * inverse[i]
        inverse = inverse - inverse[:, i, None] * inverse[None, i] / inverse[i, i]
        inverse[i, i] = 1.0  # its row and column are zero now; never read again
    return excess


@pytest.mark.parametrize("grid", [Grid(4, 128, True), Grid(4, 32, False), Grid(2, 64, True), Grid(8, 64, False)], ids=str)
def test_every_code_is_the_one_of_the_textbook(grid: Grid) -> None:
    for seed in range(2):
        weight, hessian = problem(seed)
        quantized = solve(weight, hessian, grid, sweeps=0)
        check_sound(quantized)
        excess = textbook(weight, hessian, quantized, channel_order(hessian.diagonal(), (grid.group_size,)))
        near_tie = NEAR_TIE * grid.max_code / 15  # a step is smaller on a finer grid
        assert float(excess.max()) <= near_tie


def test_the_textbook_tells_plain_rounding_from_gptq() -> None:
    weight, hessian = problem(0)
    grid = Grid(4, 128, True)
    rounded = round_to_nearest(weight, grid)
    assert float(textbook(weight, hessian, rounded, channel_order(hessian.diagonal(), (128,))).max()) > 0.1


def test_never_worse_than_rounding_to_nearest() -> None:
    """Few tokens and many, groups of all sizes, both kinds of grid, weights with and without heavy tails."""
    ratios = []
    for seed in range(60):
        group_size, bits, tokens = (32, 64, 128)[seed % 3], (4, 2, 8)[seed // 3 % 3], (24, 100, 600)[seed // 9 % 3]
        weight, hessian = problem(seed, width=128, tokens=tokens)
        if seed % 4 == 0:
            weight = weight * (weight / 0.02).abs() ** 2
        grid = Grid(bits, group_size, symmetric=seed % 2 == 0)
        ratios.append(error(weight, solve(weight, hessian, grid), hessian) / error(weight, round_to_nearest(weight, grid), hessian))
    assert max(ratios) <= 1
    assert sum(ratios) / len(ratios) < 0.5


@pytest.mark.parametrize("grid", [Grid(4, 64, True), Grid(4, 64, False)], ids=str)
def test_weights_on_the_grid_are_kept_exactly(grid: Grid) -> None:
    _, hessian = problem(1)
    codes = torch.randint(0, 16, (8, 128), generator=torch.Generator().manual_seed(1))
    codes[:, [0, 64]], codes[:, [1, 65]] = 0, 15
    weight = (codes - (8 if grid.symmetric else 3)) * 2.0**-8
    assert torch.equal(solve(weight, hessian, grid).dequantize(), weight)


def test_the_same_problem_gives_the_same_bits_and_leaves_its_arguments_alone() -> None:
    for out in (1, 16):
        weight, hessian = problem(2, out=out)
        before = weight.clone(), hessian.clone()
        first, second = solve(weight, hessian, Grid(4, 64, True)), solve(weight, hessian, Grid(4, 64, True))
        assert torch.equal(first.codes, second.codes)
        assert torch.equal(first.scales, second.scales)
        assert torch.equal(weight, before[0])
        assert torch.equal(hessian, before[1])


@pytest.mark.parametrize("power", [-60, 60])
def test_the_size_of_the_activations_does_not_matter(power: int) -> None:
    weight, hessian = problem(3)
    expected, scaled = (solve(weight, hessian * 2.0**p, Grid(4, 64, True)) for p in (0, power))
    assert torch.equal(expected.codes, scaled.codes)
    assert torch.equal(expected.scales, scaled.scales)


@pytest.mark.parametrize("symmetric", [True, False])
def test_channels_that_are_never_active_have_no_say_and_are_rounded(symmetric: bool) -> None:
    """They cannot be seen in the calibration's output, but they may be in use: a large one must not spoil its group's scale."""
    x = inputs(512, 128, seed=4)
    dead = torch.tensor([0, 5, 70, 71])
    x[:, dead] = 0
    hessian, grid = x.T @ x, Grid(4, 64, symmetric)
    weight = problem(4)[0]
    small, large = weight.clone(), weight.clone()
    small[:, dead], large[:, dead] = 0.0, 3.0
    of_small, of_weight, of_large = (solve(w, hessian, grid) for w in (small, weight, large))
    check_sound(of_large)
    alive = [i for i in range(128) if i not in dead.tolist()]
    for other in (of_weight, of_large):
        assert torch.equal(other.scales, of_small.scales)
        assert torch.equal(other.codes[:, alive], of_small.codes[:, alive])
    step = of_weight.scales.float().abs().repeat_interleave(64, dim=1)
    assert bool(((of_weight.dequantize() - weight)[:, dead].abs() <= step[:, dead] * 8).all())
    assert float((of_weight.dequantize() - weight)[:, dead].square().sum()) < float(weight[:, dead].square().sum()) / 10
    assert bool((of_small.dequantize()[:, dead] == 0).all())


@pytest.mark.parametrize("symmetric", [True, False])
def test_an_input_that_was_never_active_is_rounded_to_nearest_not_erased(symmetric: bool) -> None:
    """An expert that no calibration token reached: an all-zero Hessian says nothing, so the weights count as they are."""
    weight, grid = problem(5)[0], Grid(4, 64, symmetric)
    quantized = solve(weight, torch.zeros(128, 128), grid)
    check_sound(quantized)
    assert error(weight, quantized, torch.eye(128)) <= error(weight, round_to_nearest(weight, grid), torch.eye(128))


def test_one_silent_group_among_live_ones() -> None:
    x = inputs(512, 128, seed=6)
    x[:, 64:] = 0
    weight, hessian, grid = problem(6)[0], x.T @ x, Grid(4, 64, True)
    quantized = solve(weight, hessian, grid)
    check_sound(quantized)
    assert error(weight, quantized, hessian) < error(weight, round_to_nearest(weight, grid), hessian)
    assert error(weight[:, 64:], _half(quantized), torch.eye(64)) < 1.05 * error(
        weight[:, 64:], round_to_nearest(weight[:, 64:], grid), torch.eye(64)
    )


def _half(quantized: QuantizedWeight) -> QuantizedWeight:
    return QuantizedWeight(quantized.codes[:, 64:], quantized.scales[:, 1:], quantized.zeros[:, 1:], quantized.grid)


def broken_hessians() -> dict[str, Tensor]:
    whole = problem(7)[1]
    one_token, few_tokens = inputs(1, 128, seed=8), inputs(20, 128, seed=9)
    twins = inputs(512, 128, seed=10)
    twins[:, 1::2] = twins[:, ::2]
    loud = inputs(512, 128, seed=11)
    loud[:, 17] *= 1e6
    smallest = float(torch.linalg.eigvalsh(whole)[0])
    return {
        "zero": torch.zeros(128, 128),
        "one token": one_token.T @ one_token,
        "fewer tokens than channels": few_tokens.T @ few_tokens,
        "equal channels": twins.T @ twins,
        "one loud channel": loud.T @ loud,
        "rank one of ones": torch.ones(128, 128),
        "indefinite by rounding": whole - (smallest + 1e-6 * float(whole.diagonal().mean())) * torch.eye(128),
        "indefinite": whole - 0.3 * whole.diagonal().mean() * torch.eye(128),
        "hopelessly indefinite": -whole + 2.5 * torch.diag(whole.diagonal()),
        "denormal": 1e-40 * whole / whole.max(),
        "close to overflow": 1e37 * whole / whole.max(),
    }


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", broken_hessians())
def test_no_hessian_breaks_it(name: str, symmetric: bool) -> None:
    weight, _ = problem(12)
    check_sound(solve(weight, broken_hessians()[name], Grid(4, 64, symmetric)))


WEIGHTS = {
    "zeros": torch.zeros(8, 128),
    "constant": torch.full((8, 128), 0.3),
    "negative constant": torch.full((8, 128), -0.3),
    "denormal in float32": torch.full((8, 128), 1e-42),
    "denormal in float16": 1e-6 * torch.randn(8, 128, generator=torch.Generator().manual_seed(0)),
    "beyond float16": 1e6 * torch.randn(8, 128, generator=torch.Generator().manual_seed(1)),
    "close to overflow": 1e38 * torch.rand(8, 128, generator=torch.Generator().manual_seed(2)),
    "one huge weight": torch.zeros(8, 128).index_fill_(1, torch.tensor([40]), 3e38),
    "one row": torch.randn(1, 128, generator=torch.Generator().manual_seed(3)),
}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", WEIGHTS)
def test_no_weight_breaks_it(name: str, symmetric: bool) -> None:
    check_sound(solve(WEIGHTS[name], problem(13)[1], Grid(4, 64, symmetric)))


def test_a_huge_row_does_not_touch_the_others() -> None:
    weight, hessian = problem(14)
    broken = weight.clone()
    broken[3] = 1e38
    expected, found = solve(weight, hessian, Grid(4, 64, True)), solve(broken, hessian, Grid(4, 64, True))
    others = [i for i in range(16) if i != 3]
    assert torch.equal(found.codes[others], expected.codes[others])
    assert torch.equal(found.scales[others], expected.scales[others])


@pytest.mark.parametrize("size", [1.0, 1e-19, 3e-21, 1e-21])
def test_quiet_inputs_are_no_worse_for_asking_again(size: float) -> None:
    """Down to sums whose inverse is no float32: then codes stay as they are."""
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0)).double() * size
    weight, hessian = torch.randn(6, 64, generator=torch.Generator().manual_seed(1)), (x.T @ x).float()

    def loss(sweeps: int) -> float:
        error = solve(weight, hessian, Grid(4, 32, True), sweeps=sweeps).dequantize() - weight
        return float((x / size @ error.double().T).norm())

    assert loss(6) <= loss(0)
