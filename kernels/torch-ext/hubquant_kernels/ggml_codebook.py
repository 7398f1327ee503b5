"""The sixteen values of IQ4_NL and IQ4_XS, spaced as weights are; from ggml-common.h."""

from itertools import pairwise

import torch
from torch import Tensor

VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# half-way between neighbours, all of them multiples of a half
_TWICE_MIDPOINTS = tuple(a + b for a, b in pairwise(VALUES))
_LOW, _HIGH = _TWICE_MIDPOINTS[0] - 1, _TWICE_MIDPOINTS[-1]


def codebook(device: torch.device) -> Tensor:
    return torch.tensor(VALUES, dtype=torch.float32, device=device)


def _places(device: torch.device) -> Tensor:
    """The place in VALUES of the value nearest to h/2, for h = _LOW.._HIGH; the upper one of two as near."""
    halves = torch.arange(_LOW, _HIGH + 1, device=device)
    return (halves[:, None] >= torch.tensor(_TWICE_MIDPOINTS, device=device)).sum(1)


def _cells(x: Tensor) -> Tensor:
    """Whole numbers by which `_places` is read: ⌊2x⌋ tells on which side of every midpoint x lies."""
    return (2 * x).floor_().clamp_(_LOW, _HIGH).sub_(_LOW).nan_to_num_().to(torch.int32)


def nearest_places(x: Tensor) -> Tensor:
    """The place in VALUES, 0..15, of the value nearest to x, as uint8."""
    return _places(x.device).to(torch.uint8)[_cells(x)]


def nearest_values(x: Tensor) -> Tensor:
    """The value nearest to x."""
    values = codebook(x.device)[_places(x.device)]
    return values.index_select(0, _cells(x).view(-1)).view_as(x)
