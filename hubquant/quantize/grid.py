"""Uniform grids: a group of input channels shares a scale and a zero point. Rounding to the nearest point of one is RTN."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from hubquant_kernels.grid import group_range, round_to_grid
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """What a format can store: `bits` per weight, `group_size` input channels per scale, symmetric or with a zero point.

    A group size of −1 is a whole row, whatever its width (`of_width`). Symmetric grids have the zero at 2^(bits-1) and a signed
    scale, so the wider side of the range can be either one.
    """

    bits: int
    group_size: int
    symmetric: bool

    def of_width(self, width: int) -> "Grid":
        """The grid of rows of this width, with the number of channels that share a scale."""
        return self if self.group_size > 0 else replace(self, group_size=width)

    @property
    def max_code(self) -> int:
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        return int(2 ** (self.bits - 1))


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix on a grid: codes [out, in] uint8; scales [out, n_groups] float16; zeros [out, n_groups] uint8.

    `groups` [in] int32: the group of each input channel, where groups are not stretches of channels. `losses` [out]: diag(ΔHΔᵀ),
    Δ = what is stored less what was to be, as the solver knows it; none of a rounding without hessian.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    grid: Grid
    groups: Tensor | None = None
    losses: Tensor | None = None

    @property
    def group_index(self) -> Tensor:
        """[in] int32: the group of each input channel (GPTQ's g_idx)."""
        if self.groups is not None:
            return self.groups
        return torch.arange(self.codes.shape[1], dtype=torch.int32, device=self.codes.device) // self.grid.group_size

    def split(self, rows: Sequence[int]) -> list["QuantizedWeight"]:
        """The matrices that were stacked to this one, by their numbers of rows."""
        losses = [None] * len(rows) if self.losses is None else self.losses.split(rows)
        parts = zip(self.codes.split(rows), self.scales.split(rows), self.zeros.split(rows), losses, strict=True)
        return [QuantizedWeight(codes, scales, zeros, self.grid, self.groups, loss) for codes, scales, zeros, loss in parts]

    def dequantize(self) -> Tensor:
        """[out, in] float32: (codes − zeros) · scales."""
        group = self.group_index.long()
        return (self.codes.float() - self.zeros.float()[:, group]) * self.scales.float()[:, group]


def on_grid(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """(codes − zeros) · scales [out, in], with scales and zeros [out, n_groups] of stretches of channels."""
    groups = codes.view(*scales.shape, -1)
    return ((groups - zeros[..., None]) * scales[..., None]).view_as(codes)


def round_to_nearest(weight: Tensor, grid: Grid) -> QuantizedWeight:
    """RTN: min-max ranges, nearest codes; weight [out, in] with in a multiple of the group size. The baseline."""
    groups = weight.view(weight.shape[0], -1, grid.group_size)
    scale, zero = group_range(groups, grid.bits, grid.symmetric)
    codes = round_to_grid(groups, scale, zero, grid.max_code)
    return QuantizedWeight(codes.view_as(weight).to(torch.uint8), scale[..., 0].half(), zero[..., 0].to(torch.uint8), grid)
