"""Error feedback in GGUF's block types against a slow account of it, and against the encoders without it."""

import pytest
import torch
from hubquant_kernels.ggml_grid import GRIDDED, block_grid
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.quantize.feedback import EXACT, block_factor, encode_and_weigh, encode_with_feedback, has_blocks
from hubquant.quantize.ggml import GGML_TYPES, decode, encode
from hubquant.quantize.gptq import DAMP_RATIO

WITHOUT_GRID = ("IQ3_S", "IQ2_XS", "TQ2_0", "MXFP4")


def problem(out: int = 24, width: int = 512, tokens: int = 2048, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights [out, width] and the hessian of correlated inputs, some channels of which are loud."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5 + torch.eye(width)
    x = torch.randn(tokens, width, generator=generator) @ mixing
    x[:, :: width // 16] *= 8
    return torch.randn(out, width, generator=generator) / 16, x.T @ x


def loss(weight: Tensor, stored: Tensor, hessian: Tensor) -> float:
    delta = stored - weight
    return float(((delta @ hessian) * delta).sum())


@pytest.mark.parametrize("type_name", [*GRIDDED, *WITHOUT_GRID])
def test_less_output_error_in_as_many_bytes(type_name: str) -> None:
    weight, hessian = problem()
    plain = encode(weight, type_name, hessian.diagonal())
    fed = encode_with_feedback(weight, type_name, block_factor(hessian))
    assert fed.shape == plain.shape and fed.dtype == plain.dtype
    assert loss(weight, decode(fed, type_name), hessian) < 0.95 * loss(weight, decode(plain, type_name), hessian)


@pytest.mark.parametrize("type_name", [*GRIDDED, *WITHOUT_GRID, *EXACT])
def test_the_losses_are_what_is_lost(type_name: str) -> None:
    """Up to the roundings of sums that have the damping in them, which is taken off. A dead input costs nothing."""
    weight, hessian = problem()
    hessian[5], hessian[:, 5] = 0.0, 0.0
    data, losses = encode_and_weigh(weight, type_name, block_factor(hessian))
    delta = (decode(data, type_name) - weight).double()
    exact = ((delta @ hessian.double()) * delta).sum(1)
    damping = DAMP_RATIO * hessian.diagonal().double().mean() * delta.square().sum(1)
    assert bool(((losses - exact).abs() <= 512 * 2.0**-24 * (exact + damping)).all())


@pytest.mark.parametrize("type_name", GRIDDED)
def test_every_code_is_the_nearest_to_what_the_columns_before_have_left(type_name: str) -> None:
    """Optimal brain compression (Frantar and Alistarh 2022) with the inverse itself, reduced column by column in float64."""
    weight, hessian = problem(out=8, width=256)
    factor = block_factor(hessian)
    data = encode_with_feedback(weight, type_name, factor, sweeps=0)
    stored, kind = decode(data, type_name).double(), GGML_TYPES[type_name]
    grid = block_grid(data.view(-1, kind.type_size), type_name)
    scale = grid.scale.abs().view(8, -1).repeat_interleave(grid.size, dim=1).double()
    # the codebook's widest gap is 24 steps; at the ends of the codes an error may be any
    half = scale * (12 if grid.top is None else 0.5)
    low, high = ends(grid.top, grid.zero)
    minimum = torch.zeros_like(grid.scale) if grid.minimum is None else grid.minimum
    edge_a, edge_b = ((grid.scale * e - minimum).view(8, -1).repeat_interleave(grid.size, dim=1).double() for e in (low, high))
    lowest, highest = torch.minimum(edge_a, edge_b), torch.maximum(edge_a, edge_b)
    left = weight.double()
    damped = hessian.double() / hessian.diagonal().amax()
    inverse = torch.linalg.inv(damped + DAMP_RATIO * damped.diagonal().mean() * torch.eye(256, dtype=torch.float64))
    for column in factor.order.tolist():
        w, q = left[:, column], stored[:, column]
        inside = (w > lowest[:, column]) & (w < highest[:, column])
        # float32 keeps a weight of the order of 1/16, updated 256 times, to about 1e-5
        assert bool(((w - q).abs() <= half[:, column] + 1e-5)[inside].all())
        left = left - torch.outer((w - q) / inverse[column, column], inverse[column])
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]


def ends(top: int | None, zero: int) -> tuple[float, float]:
    return (-127.0, 113.0) if top is None else (float(-zero), float(top - zero))


def test_without_correlation_it_is_rounding() -> None:
    weight, _ = problem(width=256)
    importance = torch.linspace(1, 2, 256)
    plain = decode(encode(weight, "Q4_K", importance), "Q4_K")
    fed = decode(encode_with_feedback(weight, "Q4_K", block_factor(torch.diag(importance), damp_ratio=0.0)), "Q4_K")
    hessian = torch.diag(importance)
    assert loss(weight, fed, hessian) == pytest.approx(loss(weight, plain, hessian), rel=1e-5)


@pytest.mark.parametrize("type_name", [t for t in GRIDDED if not t.startswith("IQ4")])
def test_asking_again_takes_more_off(type_name: str) -> None:
    weight, hessian = problem()
    factor = block_factor(hessian)
    once, again = (loss(weight, decode(encode_with_feedback(weight, type_name, factor, n), type_name), hessian) for n in (0, 2))
    assert again < once


@pytest.mark.parametrize("type_name", EXACT)
def test_what_is_not_rounded_to_a_grid_is_left_alone(type_name: str) -> None:
    weight, hessian = problem()
    assert torch.equal(encode_with_feedback(weight, type_name, block_factor(hessian)), encode(weight, type_name))


@pytest.mark.parametrize(("width", "type_name"), [(96, "Q4_0"), (192, "IQ4_NL"), (384, "Q5_1"), (768, "Q6_K")])
def test_widths_that_are_no_multiple_of_256(width: int, type_name: str) -> None:
    weight, hessian = problem(width=width)
    plain = decode(encode(weight, type_name, hessian.diagonal()), type_name)
    fed = decode(encode_with_feedback(weight, type_name, block_factor(hessian)), type_name)
    assert loss(weight, fed, hessian) < loss(weight, plain, hessian)
    assert has_blocks(width) and not has_blocks(width + 16)


def test_dead_columns() -> None:
    weight, hessian = problem()
    dead = torch.arange(0, 512, 3)
    hessian[dead] = 0
    hessian[:, dead] = 0
    for type_name in ("Q4_K", "Q2_K", "IQ4_XS", "IQ3_S"):
        stored = decode(encode_with_feedback(weight, type_name, block_factor(hessian)), type_name)
        plain = decode(encode(weight, type_name, hessian.diagonal()), type_name)
        assert bool(stored.isfinite().all())
        assert loss(weight, stored, hessian) < loss(weight, plain, hessian)


def test_dead_columns_without_weights() -> None:
    """As in a model that was widened: neither activations nor weights, and so no scale."""
    weight, hessian = problem(width=768)
    weight[:, 576:] = 0
    hessian[576:] = 0
    hessian[:, 576:] = 0
    for type_name in GRIDDED:
        stored = decode(encode_with_feedback(weight, type_name, block_factor(hessian)), type_name)
        plain = decode(encode(weight, type_name, hessian.diagonal()), type_name)
        assert loss(weight, stored, hessian) < loss(weight, plain, hessian)


def test_a_block_of_zeros() -> None:
    weight, hessian = problem()
    weight[:, 256:] = 0
    weight[3] = 0
    for type_name in GRIDDED:
        assert bool(decode(encode_with_feedback(weight, type_name, block_factor(hessian)), type_name).isfinite().all())


def test_bad_weights_are_told_as_by_the_encoder() -> None:
    weight, hessian = problem()
    weight[2, 7] = float("nan")
    with pytest.raises(BadModel, match="NaN"):
        encode_with_feedback(weight, "Q4_K", block_factor(hessian))
