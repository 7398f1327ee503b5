"""Uniform grids: the scale and zero point of a group of input channels, from its range or searched under a metric.

A weight w is stored as code = clamp(round(w / scale) + zero, 0, 2^bits − 1). Symmetric grids have the zero at 2^(bits−1) and
a signed scale, so the wider side of the range can be either one.
"""

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .dispatch import on_gpu

SHRINK_STEPS = 24
LARGEST_GROUP = 128
SMALLEST_SCALE = 2.0**-14  # smallest normal float16: scales are stored in it


def round_to_grid(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> Tensor:
    """Codes (as floats) of weight [..., n]; scale and zero broadcast against it."""
    return torch.clamp(torch.round(weight / scale) + zero, 0, max_code)


def group_range(weight: Tensor, bits: int, symmetric: bool, shrink: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scale and zero [..., 1] that span the range of weight [..., n] times `shrink`."""
    if symmetric:
        middle = 2 ** (bits - 1)
        largest = torch.gather(weight, -1, weight.abs().argmax(-1, keepdim=True))
        scale = _storable(-largest * shrink / middle)
        return scale, torch.full_like(scale, middle)
    max_code = 2**bits - 1
    low, high = weight.amin(-1, keepdim=True).clamp_max(0), weight.amax(-1, keepdim=True).clamp_min(0)
    scale = _storable((high - low) * shrink / max_code)
    return scale, torch.clamp(torch.round(-low * shrink / scale), 0, max_code)


@torch.library.custom_op(add_op_namespace_prefix("fit_group"), mutates_args=())
def fit_group(weight: Tensor, metric: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero [out, 1] of one group that make ‖(Q(w) − w) M‖² small for every row of weight [out, n].

    `metric` M [n, n]: with MMᵀ = H this is the error of the output; with GPTQ's inverse Cholesky block it is what remains
    after later channels made up for it. Searched over shrunken ranges, then refitted by least squares at fixed codes.
    Scales are rounded to float16, in which they are stored. A leading dimension of both is a batch of matrices.
    Of a diagonal metric its diagonal [n] will do.
    """
    if weight.dim() == 3:
        fitted = [fit_group(w, m, bits, symmetric) for w, m in zip(weight, metric, strict=True)]
        return torch.stack([scale for scale, _ in fitted]), torch.stack([zero for _, zero in fitted])
    max_code = 2**bits - 1
    scale, zero = group_range(weight, bits, symmetric)
    loss = _loss(weight, scale, zero, max_code, metric)
    for step in range(1, SHRINK_STEPS + 1):
        for candidate in _candidates(weight, bits, symmetric, 1.0 - 0.5 * step / SHRINK_STEPS):
            scale, zero, loss = _better(weight, max_code, metric, (scale, zero, loss), candidate)
    for _ in range(2):
        points = round_to_grid(weight, scale, zero, max_code) - zero
        projected, target = _under(points, metric), _under(weight, metric)
        norm = (projected * projected).sum(1, keepdim=True)
        refit = (projected * target).sum(1, keepdim=True) / norm.clamp_min(torch.finfo(torch.float32).tiny)
        scale, zero, loss = _better(weight, max_code, metric, (scale, zero, loss), (_storable(refit), zero))
    return scale, zero


@fit_group.register_fake
def _(weight: Tensor, metric: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    return weight.new_empty((*weight.shape[:-1], 1)), weight.new_empty((*weight.shape[:-1], 1))


def _candidates(weight: Tensor, bits: int, symmetric: bool, shrink: float) -> list[tuple[Tensor, Tensor]]:
    scale, zero = group_range(weight, bits, symmetric, shrink)
    if symmetric:
        # the narrow side spans one step less: turned round, the scale must be larger by that step to reach the same weight
        middle = 2 ** (bits - 1)
        turned = _storable(-scale * (middle / (middle - 1)))
        return [(scale, zero), (turned, zero)]
    return [(scale, torch.clamp(zero + shift, 0, 2**bits - 1)) for shift in (-1, 0, 1)]


def _storable(scale: Tensor) -> Tensor:
    """Rounded to float16 and away from zero: a group of zeros has any scale, and no scale may be subnormal or infinite."""
    magnitude = scale.abs().clamp(SMALLEST_SCALE, torch.finfo(torch.float16).max)
    return torch.copysign(magnitude, scale).half().float()


def _loss(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int, metric: Tensor) -> Tensor:
    error = (round_to_grid(weight, scale, zero, max_code) - zero) * scale - weight
    return _under(error, metric).square_().sum(1, keepdim=True)


def _under(error: Tensor, metric: Tensor) -> Tensor:
    return error @ metric if metric.dim() == 2 else error * metric


def _better(
    weight: Tensor, max_code: int, metric: Tensor, best: tuple[Tensor, Tensor, Tensor], candidate: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    loss = _loss(weight, *candidate, max_code, metric)
    wins = loss < best[2]
    return torch.where(wins, candidate[0], best[0]), torch.where(wins, candidate[1], best[1]), torch.where(wins, loss, best[2])


def on_chip(weight: Tensor, *_: object) -> bool:
    """Whether a group of weight [..., n] and its metric fit into the registers and shared memory of one program."""
    return weight.shape[-1] <= LARGEST_GROUP


on_gpu(fit_group, "grid", accepts=lambda weight, metric, *rest: on_chip(weight) and metric.dim() == weight.dim())
