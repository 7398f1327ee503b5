"""The grids that encoded blocks span: which values a weight can take without changing a scale, and new codes in the same blocks.

It is what GPTQ needs to choose the codes of a GGUF type itself, after the type's own encoder has chosen the scales.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ggml_layout as layout
from .ggml_types import GGML_TYPES


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
    zero, top = _LEVELS[type_name]
    scale, minimum, codes, recode = _sub_blocked(data, type_name) if type_name in _SUB_BLOCKED else _plain(data, type_name)
    return BlockGrid(scale, minimum, zero, top, GGML_TYPES[type_name].block_size // scale.shape[1], codes, recode)


Fields = tuple[Tensor, Tensor | None, Tensor, Callable[[Tensor], Tensor]]  # scale, minimum, codes, recode


def _sub_blocked(data: Tensor, type_name: str) -> Fields:
    """Scales and minima of sub-blocks, themselves codes under d and dmin."""
    unpack, pack = _SUB_BLOCKED[type_name]
    *scales, codes = unpack(data)
    d, sc = scales[0], scales[len(scales) // 2]
    minimum = scales[1].float() * scales[3].float() if len(scales) == 4 else None
    return d.float() * sc.float(), minimum, codes, lambda others: pack(*scales, others)


def _plain(data: Tensor, type_name: str) -> Fields:
    """One float16 scale for the block; where a second one follows it is added to the values."""
    start, unpack, pack = _PLAIN[type_name]
    d, m = (layout.half(data[:, place : place + 2]).float() for place in (0, start - 2))
    minimum = -m if start == 4 else None
    return d, minimum, unpack(data[:, start:]), lambda others: torch.cat((data[:, :start], pack(others)), dim=1)


def _pack_four(codes: Tensor) -> Tensor:
    return layout.pack_nibbles(codes, 16)


def _unpack_four(data: Tensor) -> Tensor:
    return layout.unpack_nibbles(data, 16)


def _pack_five(codes: Tensor) -> Tensor:
    return torch.cat((layout.pack_bit32(codes >> 4), _pack_four(codes & 15)), dim=1)


def _unpack_five(data: Tensor) -> Tensor:
    return _unpack_four(data[:, 4:]) | (layout.unpack_bit32(data[:, :4]) << 4)


# the code of zero, and the largest code
_LEVELS: dict[str, tuple[int, int | None]] = {
    "Q8_0": (127, 254),  # −128 is left out, as by the encoder
    "Q4_0": (8, 15),
    "Q4_1": (0, 15),
    "Q5_0": (16, 31),
    "Q5_1": (0, 31),
    "IQ4_NL": (0, None),
    "Q2_K": (0, 3),
    "Q3_K": (4, 7),
    "Q4_K": (0, 15),
    "Q5_K": (0, 31),
    "Q6_K": (32, 63),
    "IQ4_XS": (0, None),
}
# how the fields are read and written: d, dmin, sc, m, codes or d, sc, codes
_SUB_BLOCKED: dict[str, tuple[Callable[..., tuple[Tensor, ...]], Callable[..., Tensor]]] = {
    "Q2_K": (layout.unpack_q2_k, layout.pack_q2_k),
    "Q3_K": (layout.unpack_q3_k, layout.pack_q3_k),
    "Q4_K": (layout.unpack_q4_k, layout.pack_q4_k),
    "Q5_K": (layout.unpack_q5_k, layout.pack_q5_k),
    "Q6_K": (layout.unpack_q6_k, layout.pack_q6_k),
    "IQ4_XS": (layout.unpack_iq4_xs, layout.pack_iq4_xs),
}
# how many bytes the scales take, and how the codes after them are read and written
_PLAIN: dict[str, tuple[int, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "Q8_0": (2, lambda data: data + 127, lambda codes: codes - 127),
    "Q4_0": (2, _unpack_four, _pack_four),
    "Q4_1": (4, _unpack_four, _pack_four),
    "Q5_0": (2, _unpack_five, _pack_five),
    "Q5_1": (4, _unpack_five, _pack_five),
    "IQ4_NL": (2, _unpack_four, _pack_four),
}

GRIDDED = tuple(_LEVELS)
