"""Codes of 2, 4 or 8 bits in int32 words, as GPTQ (along rows) and AWQ (along columns) lay them out."""

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix

WORD = 32
BITS = (2, 4, 8)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of an AWQ word holds column AWQ_ORDER[i] of its eight


@torch.library.custom_op(add_op_namespace_prefix("pack_words"), mutates_args=())
def pack_words(codes: Tensor, bits: int) -> Tensor:
    """codes [..., n] uint8 → [..., n·bits/32] int32, the first code in the lowest bits. Raises ValueError for bits not in BITS."""
    per_word = _per_word(bits)
    lanes = codes.to(torch.int64).unflatten(-1, (-1, per_word))
    shifts = torch.arange(per_word, device=codes.device) * bits
    words = (lanes << shifts).sum(dim=-1)
    return (words - ((words >> (WORD - 1)) << WORD)).to(torch.int32)  # the top bit is the sign of an int32


@pack_words.register_fake
def _(codes: Tensor, bits: int) -> Tensor:
    return codes.new_empty((*codes.shape[:-1], codes.shape[-1] * bits // WORD), dtype=torch.int32)


@torch.library.custom_op(add_op_namespace_prefix("unpack_words"), mutates_args=())
def unpack_words(words: Tensor, bits: int) -> Tensor:
    """[..., w] int32 → codes [..., w·32/bits] uint8, the lowest bits first. Raises ValueError for bits not in BITS."""
    shifts = torch.arange(_per_word(bits), device=words.device, dtype=torch.int32) * bits
    lanes = (words[..., None] >> shifts) & (2**bits - 1)
    return lanes.flatten(-2).to(torch.uint8)


@unpack_words.register_fake
def _(words: Tensor, bits: int) -> Tensor:
    return words.new_empty((*words.shape[:-1], words.shape[-1] * WORD // bits), dtype=torch.uint8)


def to_awq_order(codes: Tensor) -> Tensor:
    """Columns [..., n] of 4-bit codes in the order in which AWQ packs them."""
    return codes.unflatten(-1, (-1, 8))[..., list(AWQ_ORDER)].flatten(-2)


def from_awq_order(codes: Tensor) -> Tensor:
    """The inverse of `to_awq_order`."""
    inverse = sorted(range(8), key=AWQ_ORDER.__getitem__)
    return codes.unflatten(-1, (-1, 8))[..., inverse].flatten(-2)


def _per_word(bits: int) -> int:
    """Codes per word. Files of 3 bits let codes straddle words: they must not be read as ten whole codes to a word."""
    if bits not in BITS:
        raise ValueError(f"codes of {bits} bits do not fill a word; known: {', '.join(map(str, BITS))}")
    return WORD // bits
