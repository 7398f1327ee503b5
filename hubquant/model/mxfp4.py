"""Published MXFP4 weights (gpt-oss): blocks of 32 values of 4 bits with one power of two. They are all that is published of such a
model, so they are read as its weights; nothing is lost in decoding.

On disk (transformers, integrations/mxfp4.py): X_blocks [experts, out, in/32, 16] uint8, the value in the low four bits first, and
X_scales [experts, out, in/32] uint8, the power of two plus 127, stand for X [experts, in, out].
"""

from collections.abc import Iterable

import torch
from torch import Tensor

METHOD = "mxfp4"
BLOCKS, SCALES = "_blocks", "_scales"
# E2M1 of the OCP microscaling specification: sign, two bits of exponent, one of mantissa
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
BIAS = 127


def packed_names(names: Iterable[str]) -> set[str]:
    """X of every pair X_blocks, X_scales."""
    present = set(names)
    stems = {name.removesuffix(BLOCKS) for name in present if name.endswith(BLOCKS)}
    return {stem for stem in stems if stem + SCALES in present}


def shape(blocks: tuple[int, ...]) -> tuple[int, ...]:
    """Of X, from that of X_blocks."""
    *leading, out, groups, width = blocks
    return (*leading, groups * width * 2, out)


def decode(blocks: Tensor, scales: Tensor) -> Tensor:
    """[…, out, groups, 16] and […, out, groups], uint8 → […, in, out] float32."""
    table = torch.tensor(VALUES)
    pairs = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2).int()
    values = torch.ldexp(table[pairs], (scales.int() - BIAS)[..., None])
    return values.flatten(-2).transpose(-1, -2)
