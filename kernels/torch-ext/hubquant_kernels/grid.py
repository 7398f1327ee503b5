"""Uniform grids: the scale and zero point of a group of input channels, from its range or searched under a metric.

A weight w is stored as code = clamp(round(w / scale) + zero, 0, 2^bits − 1). Symmetric grids have the zero at 2^(bits−1) and
a signed scale, so the wider side of the range can be either one.
"""

import torch
from torch import Tensor

from . import native_columns
from ._ops import add_op_namespace_prefix
from .dispatch import on_gpu

SHRINK_STEPS = 24
LARGEST_GROUP = 128
SMALLEST_SCALE = 2.0**-14  # smallest normal float16: scales are stored in it


def round_to_grid(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> Tensor:
    """Codes (as floats) of weight [..., n]; scale and zero broadcast against it."""
    return torch.clamp(torch.round(weight / scale) + zero, 0, max_code)


def group_range(weight: Tensor, bits: int, symmetric: bool, shrink: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """Scale and zero [..., 1] that span the range of weight [..., n] times `shrink`, or [..., k] for k of them."""
    if symmetric:
        middle = 2 ** (bits - 1)
        largest = torch.gather(weight, -1, weight.abs().argmax(-1, keepdim=True))
        scale = storable(-largest * shrink / middle)
        return scale, torch.full_like(scale, middle)
    max_code = 2**bits - 1
    low, high = weight.amin(-1, keepdim=True).clamp_max(0), weight.amax(-1, keepdim=True).clamp_min(0)
    scale = storable((high - low) * shrink / max_code)
    return scale, torch.clamp(torch.round(-low * shrink / scale), 0, max_code)


@torch.library.custom_op(add_op_namespace_prefix("fit_group"), mutates_args=())
def fit_group(weight: Tensor, metric: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero [out, 1] of one group that make Σ ((Q(w) − w)·metric)² small for every row of weight [out, n].

    `metric` [n] ≥ 0: what a unit of each channel's error costs; the diagonal of R (RRᵀ = H) where later channels make up for it.
    Searched over shrunken ranges, then refitted by least squares at fixed codes. Scales are rounded to float16, in which they are
    stored. A leading dimension of both is a batch of matrices.
    """
    if weight.dim() == 3:
        fitted = [fit_group(w, m, bits, symmetric) for w, m in zip(weight, metric, strict=True)]
        return torch.stack([scale for scale, _ in fitted]), torch.stack([zero for _, zero in fitted])
    max_code = 2**bits - 1
    shrink = 1.0 - 0.5 * torch.arange(1, SHRINK_STEPS + 1, device=weight.device) / SHRINK_STEPS
    grids = [group_range(weight, bits, symmetric), *_candidates(weight, bits, symmetric, shrink)]
    scales, zeros = (torch.cat(parts, 1) for parts in zip(*grids, strict=True))
    losses = _losses(weight, scales, zeros, max_code, metric)
    best = losses.argmin(1, keepdim=True)  # the first of those with the least
    scale, zero, loss = (values.gather(1, best) for values in (scales, zeros, losses))
    for _ in range(2):
        points = round_to_grid(weight, scale, zero, max_code) - zero
        counted = points * metric.square()
        norm = (counted * points).sum(1, keepdim=True)
        refit = storable((counted * weight).sum(1, keepdim=True) / norm.clamp_min(torch.finfo(torch.float32).tiny))
        its_loss = _losses(weight, refit, zero, max_code, metric)
        scale, loss = torch.where(its_loss < loss, refit, scale), torch.minimum(its_loss, loss)
    return scale, zero


@fit_group.register_fake
def _(weight: Tensor, metric: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    return weight.new_empty((*weight.shape[:-1], 1)), weight.new_empty((*weight.shape[:-1], 1))


def _candidates(weight: Tensor, bits: int, symmetric: bool, shrink: Tensor) -> list[tuple[Tensor, Tensor]]:
    scale, zero = group_range(weight, bits, symmetric, shrink)
    if symmetric:
        # the narrow side spans one step less: turned round, the scale must be larger by that step to reach the same weight
        middle = 2 ** (bits - 1)
        turned = storable(-scale * (middle / (middle - 1)))
        return [(scale, zero), (turned, zero)]
    return [(scale, torch.clamp(zero + shift, 0, 2**bits - 1)) for shift in (-1, 0, 1)]


def storable(scale: Tensor) -> Tensor:
    """Rounded to float16 and away from zero: a group of zeros has any scale, and no scale may be subnormal or infinite."""
    magnitude = scale.abs().clamp(SMALLEST_SCALE, torch.finfo(torch.float16).max)
    return torch.copysign(magnitude, scale).half().float()


def _losses(weight: Tensor, scales: Tensor, zeros: Tensor, max_code: int, metric: Tensor) -> Tensor:
    """Of every row of weight [out, n] on each of k grids, whose scales and zeros are [out, k]: [out, k]."""
    fast = native_columns.grid_losses(weight, metric, scales.T, zeros.T, max_code)
    if fast is not None:
        return fast.T
    losses = []
    for scale, zero in zip(scales.split(1, 1), zeros.split(1, 1), strict=True):
        error = (round_to_grid(weight, scale, zero, max_code) - zero) * scale - weight
        losses.append((error * metric).square_().sum(1, keepdim=True))
    return torch.cat(losses, 1)


def on_chip(weight: Tensor, *_: object) -> bool:
    """Whether a group of weight [..., n] fits into the registers of one program."""
    return weight.shape[-1] <= LARGEST_GROUP


on_gpu(fit_group, "grid", accepts=on_chip)
