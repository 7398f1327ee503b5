"""The grids that encoded blocks span: which values a weight can take without changing a scale, and new codes in the same blocks.

It is what GPTQ needs to choose the codes of a GGUF type itself, after the type's own encoder has chosen the scales.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ggml_layout as layout
from .ggml_types import GGML_TYPES

# scale, minimum, codes, and how other codes are packed
Fields = tuple[Tensor, Tensor | None, Tensor, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class BlockGrid:
    """A weight of sub-block g is scale·(code − zero) − minimum, or scale·VALUES[code] where `top` is None.

    `scale` [n, g] and `minimum` [n, g] or None are float32, codes run 0..top; `size` weights are a sub-block.
    `codes` are the blocks' own, uint8 [n, block_size]; `recode` takes others into the bytes of the same blocks.
    """

    scale: Tensor
    minimum: Tensor | None
    zero: int
    top: int | None
    size: int
    codes: Tensor
    recode: Callable[[Tensor], Tensor]


def block_grid(data: Tensor, type_name: str) -> BlockGrid:
    """The grid of blocks uint8 [n, type_size] of a type of GRIDDED."""
    zero, top, read = _GRIDS[type_name]
    scale, minimum, codes, recode = read(data)
    return BlockGrid(scale, minimum, zero, top, GGML_TYPES[type_name].block_size // scale.shape[1], codes, recode)


def _half(data: Tensor, start: int) -> Tensor:
    return layout.half(data[:, start : start + 2]).float()


def _q4_k(data: Tensor) -> Fields:
    d, dmin, sc, m, own = layout.unpack_q4_k(data)
    return d.float() * sc.float(), dmin.float() * m.float(), own, lambda codes: layout.pack_q4_k(d, dmin, sc, m, codes)


def _q5_k(data: Tensor) -> Fields:
    d, dmin, sc, m, own = layout.unpack_q5_k(data)
    return d.float() * sc.float(), dmin.float() * m.float(), own, lambda codes: layout.pack_q5_k(d, dmin, sc, m, codes)


def _q2_k(data: Tensor) -> Fields:
    d, dmin, sc, m, own = layout.unpack_q2_k(data)
    return d.float() * sc.float(), dmin.float() * m.float(), own, lambda codes: layout.pack_q2_k(d, dmin, sc, m, codes)


def _q6_k(data: Tensor) -> Fields:
    d, sc, own = layout.unpack_q6_k(data)
    return d.float() * sc.float(), None, own, lambda codes: layout.pack_q6_k(d, sc, codes)


def _q3_k(data: Tensor) -> Fields:
    d, sc, own = layout.unpack_q3_k(data)
    return d.float() * sc.float(), None, own, lambda codes: layout.pack_q3_k(d, sc, codes)


def _iq4_xs(data: Tensor) -> Fields:
    d, sc, own = layout.unpack_iq4_xs(data)
    return d.float() * sc.float(), None, own, lambda codes: layout.pack_iq4_xs(d, sc, codes)


def _nibbles(data: Tensor) -> Fields:
    """Q4_0 and IQ4_NL."""
    own = layout.unpack_nibbles(data[:, 2:], 16)
    return _half(data, 0), None, own, lambda codes: torch.cat((data[:, :2], layout.pack_nibbles(codes, 16)), dim=1)


def _q5_0(data: Tensor) -> Fields:
    return _half(data, 0), None, _from_five_bits(data[:, 2:]), lambda codes: torch.cat((data[:, :2], _five_bits(codes)), dim=1)


def _q4_1(data: Tensor) -> Fields:
    own = layout.unpack_nibbles(data[:, 4:], 16)
    return _half(data, 0), -_half(data, 2), own, lambda codes: torch.cat((data[:, :4], layout.pack_nibbles(codes, 16)), dim=1)


def _q5_1(data: Tensor) -> Fields:
    own = _from_five_bits(data[:, 4:])
    return _half(data, 0), -_half(data, 2), own, lambda codes: torch.cat((data[:, :4], _five_bits(codes)), dim=1)


def _q8_0(data: Tensor) -> Fields:
    return _half(data, 0), None, data[:, 2:] + 127, lambda codes: torch.cat((data[:, :2], codes - 127), dim=1)


def _five_bits(codes: Tensor) -> Tensor:
    return torch.cat((layout.pack_bit32(codes >> 4), layout.pack_nibbles(codes & 15, 16)), dim=1)


def _from_five_bits(data: Tensor) -> Tensor:
    return layout.unpack_nibbles(data[:, 4:], 16) | (layout.unpack_bit32(data[:, :4]) << 4)


# the code of zero, the largest code, and how the fields are read
_GRIDS: dict[str, tuple[int, int | None, Callable[[Tensor], Fields]]] = {
    "Q8_0": (127, 254, _q8_0),  # −128 is left out, as by the encoder
    "Q4_0": (8, 15, _nibbles),
    "Q4_1": (0, 15, _q4_1),
    "Q5_0": (16, 31, _q5_0),
    "Q5_1": (0, 31, _q5_1),
    "IQ4_NL": (0, None, _nibbles),
    "Q2_K": (0, 3, _q2_k),
    "Q3_K": (4, 7, _q3_k),
    "Q4_K": (0, 15, _q4_k),
    "Q5_K": (0, 31, _q5_k),
    "Q6_K": (32, 63, _q6_k),
    "IQ4_XS": (0, None, _iq4_xs),
}

GRIDDED = tuple(_GRIDS)
