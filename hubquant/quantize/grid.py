"""Uniform grids: a group of input channels shares a scale and a zero point. Rounding to the nearest point of one is RTN."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHRINK_STEPS = 24
SMALLEST_SCALE = 2.0**-14  # smallest normal float16: scales are stored in it


@dataclass(frozen=True)
class Grid:
    """What a format can store: `bits` per weight, `group_size` input channels per scale, symmetric or with a zero point.

    Symmetric grids have the zero at 2^(bits-1) and a signed scale, so the wider side of the range can be either one.
    """

    bits: int
    group_size: int
    symmetric: bool

    @property
    def max_code(self) -> int:
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        return int(2 ** (self.bits - 1))


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix on a grid: codes [out, in] uint8; scales [out, n_groups] float16; zeros [out, n_groups] uint8."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    grid: Grid

    @property
    def group_index(self) -> Tensor:
        """[in] int32: the group of each input channel (GPTQ's g_idx)."""
        return torch.arange(self.codes.shape[1], dtype=torch.int32) // self.grid.group_size

    def split(self, rows: Sequence[int]) -> list["QuantizedWeight"]:
        """The matrices that were stacked to this one, by their numbers of rows."""
        parts = zip(self.codes.split(rows), self.scales.split(rows), self.zeros.split(rows), strict=True)
        return [QuantizedWeight(codes, scales, zeros, self.grid) for codes, scales, zeros in parts]

    def dequantize(self) -> Tensor:
        """[out, in] float32: (codes − zeros) · scales."""
        repeat = self.grid.group_size
        zeros = self.zeros.float().repeat_interleave(repeat, dim=1)
        scales = self.scales.float().repeat_interleave(repeat, dim=1)
        return (self.codes.float() - zeros) * scales


def round_to_grid(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> Tensor:
    """Codes (as floats) of weight [..., n]; scale and zero broadcast against it."""
    return torch.clamp(torch.round(weight / scale) + zero, 0, max_code)


def fit_group(weight: Tensor, grid: Grid, metric: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero [out, 1] of one group that make ‖(Q(w) − w) M‖² small for every row of weight [out, group].

    `metric` M is [group, group]: with MMᵀ = H this is the error of the output; with GPTQ's inverse Cholesky block it is
    what remains after later channels made up for it. Searched over shrunken ranges, then refitted by least squares at
    fixed codes. Scales are rounded to float16, in which they are stored.
    """
    scale, zero = _range(weight, grid, 1.0)
    loss = _loss(weight, scale, zero, grid, metric)
    for step in range(1, SHRINK_STEPS + 1):
        for candidate in _candidates(weight, grid, 1.0 - 0.5 * step / SHRINK_STEPS):
            scale, zero, loss = _better(weight, grid, metric, (scale, zero, loss), candidate)
    for _ in range(2):
        points = round_to_grid(weight, scale, zero, grid.max_code) - zero
        projected, target = points @ metric, weight @ metric
        norm = (projected * projected).sum(1, keepdim=True)
        refit = (projected * target).sum(1, keepdim=True) / norm.clamp_min(torch.finfo(torch.float32).tiny)
        scale, zero, loss = _better(weight, grid, metric, (scale, zero, loss), (_storable(refit), zero))
    return scale, zero


def round_to_nearest(weight: Tensor, grid: Grid) -> QuantizedWeight:
    """RTN: min-max ranges, nearest codes; weight [out, in] with in a multiple of the group size. The baseline."""
    groups = weight.view(weight.shape[0], -1, grid.group_size)
    scale, zero = _range(groups, grid, 1.0)
    codes = round_to_grid(groups, scale, zero, grid.max_code)
    return QuantizedWeight(codes.view_as(weight).to(torch.uint8), scale[..., 0].half(), zero[..., 0].to(torch.uint8), grid)


def _range(weight: Tensor, grid: Grid, shrink: float) -> tuple[Tensor, Tensor]:
    """Scale and zero [..., 1] that span the weights' range times `shrink`."""
    if grid.symmetric:
        largest = torch.gather(weight, -1, weight.abs().argmax(-1, keepdim=True))
        scale = _storable(-largest * shrink / grid.middle)
        return scale, torch.full_like(scale, grid.middle)
    low, high = weight.amin(-1, keepdim=True).clamp_max(0), weight.amax(-1, keepdim=True).clamp_min(0)
    scale = _storable((high - low) * shrink / grid.max_code)
    return scale, torch.clamp(torch.round(-low * shrink / scale), 0, grid.max_code)


def _candidates(weight: Tensor, grid: Grid, shrink: float) -> list[tuple[Tensor, Tensor]]:
    scale, zero = _range(weight, grid, shrink)
    if grid.symmetric:
        # the narrow side spans one step less: turned round, the scale must be larger by that step to reach the same weight
        turned = _storable(-scale * (grid.middle / (grid.middle - 1)))
        return [(scale, zero), (turned, zero)]
    return [(scale, torch.clamp(zero + shift, 0, grid.max_code)) for shift in (-1, 0, 1)]


def _storable(scale: Tensor) -> Tensor:
    """Rounded to float16 and away from zero: a group of zeros has any scale, and no scale may be subnormal or infinite."""
    magnitude = scale.abs().clamp(SMALLEST_SCALE, torch.finfo(torch.float16).max)
    return torch.copysign(magnitude, scale).half().float()


def _loss(weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid, metric: Tensor) -> Tensor:
    error = (round_to_grid(weight, scale, zero, grid.max_code) - zero) * scale - weight
    return (error @ metric).square_().sum(1, keepdim=True)


def _better(
    weight: Tensor, grid: Grid, metric: Tensor, best: tuple[Tensor, Tensor, Tensor], candidate: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    loss = _loss(weight, *candidate, grid, metric)
    wins = loss < best[2]
    return torch.where(wins, candidate[0], best[0]), torch.where(wins, candidate[1], best[1]), torch.where(wins, loss, best[2])
