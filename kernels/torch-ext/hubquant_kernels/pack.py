"""Codes of 2, 3, 4 or 8 bits in int32 words, as GPTQ (along rows) and AWQ (along columns) lay them out."""

import math

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .dispatch import on_gpu
from .grid import round_to_grid

WORD = 32
BITS = (2, 3, 4, 8)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of an AWQ word holds column AWQ_ORDER[i] of its eight


@torch.library.custom_op(add_op_namespace_prefix("pack_words"), mutates_args=())
def pack_words(codes: Tensor, bits: int) -> Tensor:
    """codes [..., n] uint8 → [..., n·bits/32] int32: one stream of bits, the first code in the lowest bits of the first word.

    32 codes of 3 bits fill three words, and codes 10 and 21 of them lie across two. Raises ValueError for bits not in BITS.
    """
    per_unit, n_words = _unit(bits)
    lanes = codes.to(torch.int64).unflatten(-1, (-1, per_unit))
    words = []
    for first in range(0, n_words * WORD, WORD):
        inside = range(first // bits, -(-(first + WORD) // bits))
        shifts = torch.tensor([bits * k - first + bits for k in inside], device=codes.device)  # + bits: none is negative
        word = (lanes[..., inside.start : inside.stop] << shifts).sum(dim=-1) >> bits
        words.append(word & (2**WORD - 1))
    stream = torch.stack(words, dim=-1).flatten(-2)
    return (stream - ((stream >> (WORD - 1)) << WORD)).to(torch.int32)  # the top bit is the sign of an int32


@pack_words.register_fake
def _(codes: Tensor, bits: int) -> Tensor:
    return codes.new_empty((*codes.shape[:-1], codes.shape[-1] * bits // WORD), dtype=torch.int32)


@torch.library.custom_op(add_op_namespace_prefix("unpack_words"), mutates_args=())
def unpack_words(words: Tensor, bits: int) -> Tensor:
    """[..., w] int32 → codes [..., w·32/bits] uint8, the inverse of `pack_words`. Raises ValueError for bits not in BITS."""
    per_unit, n_words = _unit(bits)
    units = words.unflatten(-1, (-1, n_words))
    starts = torch.arange(per_unit, device=words.device) * bits
    shifts = (starts % WORD).to(torch.int32)
    lanes = units[..., starts // WORD] >> shifts if n_words > 1 else units >> shifts
    for k in (k for k in range(per_unit) if bits * k // WORD < (bits * (k + 1) - 1) // WORD):
        low = WORD - bits * k % WORD  # so many bits of this code are in the first of its two words
        lanes[..., k] = lanes[..., k] & (2**low - 1) | units[..., bits * k // WORD + 1] << low
    return (lanes & (2**bits - 1)).flatten(-2).to(torch.uint8)


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


@torch.library.custom_op(add_op_namespace_prefix("round_and_pack"), mutates_args=())
def round_and_pack(weight: Tensor, scales: Tensor, zeros: Tensor, bits: int, layout: str) -> Tensor:
    """qweight of the nearest points of a grid: clamp(round(w / scale) + zero, 0, 2^bits − 1), packed.

    weight [out, in] float32; scales [out, n_groups]; zeros [out, n_groups] uint8, groups in order and of one size.
    layout "gptq": [in·bits/32, out] int32; "awq", 4 bits: [in, out/8]. Raises ValueError for another layout or width.
    """
    _check_layout(layout, bits)
    groups = weight.unflatten(1, (scales.shape[1], -1))
    codes = round_to_grid(groups, scales.float()[..., None], zeros.float()[..., None], 2**bits - 1).flatten(1).to(torch.uint8)
    return pack_words(codes, bits).T.contiguous() if layout == "gptq" else pack_words(to_awq_order(codes.T.contiguous()), bits)


@round_and_pack.register_fake
def _(weight: Tensor, scales: Tensor, zeros: Tensor, bits: int, layout: str) -> Tensor:
    n_out, n_in = weight.shape
    shape = (n_in * bits // WORD, n_out) if layout == "gptq" else (n_in, n_out * bits // WORD)
    return weight.new_empty(shape, dtype=torch.int32)


@torch.library.custom_op(add_op_namespace_prefix("repack_words"), mutates_args=())
def repack_words(qweight: Tensor, layout: str) -> Tensor:
    """The same codes of 4 bits in the other layout: [in/8, out] → "awq" [in, out/8], or [in, out/8] → "gptq" [in/8, out]."""
    _check_layout(layout, 4)
    if layout == "awq":
        return pack_words(to_awq_order(unpack_words(qweight.T.contiguous(), 4).T.contiguous()), 4)
    return pack_words(from_awq_order(unpack_words(qweight, 4)).T.contiguous(), 4).T.contiguous()


@repack_words.register_fake
def _(qweight: Tensor, layout: str) -> Tensor:
    rows, columns = qweight.shape
    return qweight.new_empty((rows * 8, columns // 8) if layout == "awq" else (rows // 8, columns * 8))


for _operator in (round_and_pack, repack_words):
    on_gpu(_operator, "pack")


def _check_layout(layout: str, bits: int) -> None:
    if layout not in ("gptq", "awq") or (layout == "awq" and bits != 4):
        raise ValueError(f"no layout {layout!r} of {bits} bits; known: gptq of {', '.join(map(str, BITS))} bits, awq of 4 bits")


def _unit(bits: int) -> tuple[int, int]:
    """Codes and words in the shortest stretch of whole words that holds whole codes."""
    if bits not in BITS:
        raise ValueError(f"codes of {bits} bits are not known; known: {', '.join(map(str, BITS))}")
    return math.lcm(bits, WORD) // bits, math.lcm(bits, WORD) // WORD
