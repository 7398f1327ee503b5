"""Encoders of the types with blocks of 32 weights and one or two float16 scales, and of the plain float types.

ggml's own way is one scale from the range of the block; with importance, for the 4- and 5-bit types, a search.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from . import ggml_best_affine as affine
from . import ggml_best_symmetric as symmetric
from .ggml_columns import Blocks, columns, exact_root, rows, stored
from .ggml_layout import half_bytes, pack_bit32, pack_nibbles
from .ggml_search import affine_search, signed_peak, symmetric_search

Q4_0 = symmetric.SymmetricKind(-8, 7, 0, 0, symmetric.peaks(-8, 7, 0.75, 2.0, 9))
Q5_0 = symmetric.SymmetricKind(-16, 15, 0, 0, symmetric.peaks(-16, 15, 1.6, 2.0, 9))
# −128 is left out: ggml never writes it, and kernels that negate a code could not
Q8_0 = symmetric.SymmetricKind(-127, 127, 0, 0, symmetric.peaks(-127, 127, 12.7, 1.0, 9)[:9])


def encode_f32(blocks: Blocks) -> Tensor:
    return blocks.x.contiguous().view(torch.uint8)


def encode_f16(blocks: Blocks) -> Tensor:
    return blocks.x.to(torch.float16).view(torch.uint8)


def encode_bf16(blocks: Blocks) -> Tensor:
    return blocks.x.to(torch.bfloat16).view(torch.uint8)


def round_away(x: Tensor) -> Tensor:
    """C's roundf: halves away from zero."""
    whole = x.trunc()
    return whole + (x - whole).mul_(2).trunc_()


def _search_weights(blocks: Blocks) -> Tensor | None:
    """ggml's weights for its searches, importance·√(mean square of the row + x²), as columns."""
    if blocks.importance is None or blocks.row_square is None:
        return None
    x = columns(blocks.x, 32)
    return exact_root((x * x).add_(blocks.row_square)).mul_(columns(blocks.importance, 32))


def _in_parts(blocks: Blocks, encode: Callable[[Blocks], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(field) for field in zip(*map(encode, blocks.parts()), strict=True))


def _q8_0(blocks: Blocks) -> tuple[Tensor, Tensor]:
    peak = blocks.x.abs().amax(1)
    d = peak / torch.full_like(peak, 127.0)
    return stored(d), round_away(blocks.x * symmetric.inverse(d)[:, None])


def _symmetric(blocks: Blocks, kind: symmetric.SymmetricKind) -> tuple[Tensor, Tensor]:
    """float16 d [n, 1] and codes low..high [n, 32], as ggml finds them."""
    levels, w = -kind.low, _search_weights(blocks)
    if w is not None:
        x = columns(blocks.x, 32)
        scale, iscale = symmetric_search(x, w, levels)
        codes = rows((x * iscale).round_().clamp_(kind.low, kind.high).add_(levels), len(blocks.x)).float()
        return stored(scale), codes.masked_fill_((iscale == 0)[:, None], 0.0).sub_(levels)
    d = signed_peak(blocks.x.T) / -levels
    codes = (blocks.x * symmetric.inverse(d)[:, None] + (levels + 0.5)).trunc_().clamp_(0, 2 * levels - 1)
    return stored(d), codes.sub_(levels)


def _affine(blocks: Blocks, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """float16 d and m [n, 1] and codes 0..levels [n, 32], as ggml finds them."""
    w = _search_weights(blocks)
    if w is not None:
        x = columns(blocks.x, 32)
        scale, minimum, iscale, origin = affine_search(x, w, levels, -0.9, 0.05, 36)
        codes = rows((x - origin).mul_(iscale).round_().clamp_(0, levels), len(blocks.x))
        return stored(scale), stored(-minimum), codes.float()
    low = blocks.x.amin(1)
    span = blocks.x.amax(1) - low
    d = span / torch.full_like(span, levels)
    codes = ((blocks.x - low[:, None]) * symmetric.inverse(d)[:, None] + 0.5).trunc_().clamp_(0, levels)
    return stored(d), stored(low), codes


def _best_symmetric(blocks: Blocks, kind: symmetric.SymmetricKind, d: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The better of these and the best found."""
    w = blocks.weights()
    x = symmetric.SymmetricColumns(columns(blocks.x, 32), None if w is None else columns(w, 32), kind)
    error = x.error(columns(codes, 32).flatten(0, 1), d.float().view(-1))
    new, new_error = symmetric.best_one_level(x)
    better = (new_error < error)[:, None]
    return torch.where(better, new[:, None].half(), d), torch.where(better, x.rounded(new).T, codes)


def _best_affine(blocks: Blocks, levels: int, d: Tensor, m: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The better of these and the best found."""
    w = blocks.weights()
    x = affine.AffineColumns(columns(blocks.x, 32), None if w is None else columns(w, 32), levels, signed=True)
    error = x.error(x.x - m.float().view(-1), columns(codes, 32).flatten(0, 1), d.float().view(-1))
    new, minimum, new_error = affine.best_one_level(x)
    better = (new_error < error)[:, None]
    new_m = minimum.neg()[:, None].half()
    return (
        torch.where(better, new[:, None].half(), d),
        torch.where(better, new_m, m),
        torch.where(better, x.rounded(new, minimum).T, codes),
    )


def _encode_symmetric(blocks: Blocks, kind: symmetric.SymmetricKind) -> tuple[Tensor, Tensor]:
    """Bytes of d [n, 2] and codes counted from the lowest, uint8 [n, 32]."""

    def encode(part: Blocks) -> tuple[Tensor, ...]:
        found = _q8_0(part) if kind.low == -127 else _symmetric(part, kind)
        return _best_symmetric(part, kind, *found) if blocks.best else found

    d, codes = _in_parts(blocks, encode)
    return half_bytes(d), codes


def _encode_affine(blocks: Blocks, levels: int) -> tuple[Tensor, Tensor]:
    """Bytes of d and m [n, 4] and codes uint8 [n, 32]."""

    def encode(part: Blocks) -> tuple[Tensor, ...]:
        found = _affine(part, levels)
        return _best_affine(part, levels, *found) if blocks.best else found

    d, m, codes = _in_parts(blocks, encode)
    return torch.cat((half_bytes(d), half_bytes(m)), dim=1), codes.to(torch.uint8)


def encode_q8_0(blocks: Blocks) -> Tensor:
    d, codes = _encode_symmetric(blocks, Q8_0)
    return torch.cat((d, codes.to(torch.int8).view(torch.uint8)), dim=1)


def encode_q4_0(blocks: Blocks) -> Tensor:
    d, codes = _encode_symmetric(blocks, Q4_0)
    return torch.cat((d, pack_nibbles(codes.add_(8).to(torch.uint8), 16)), dim=1)


def encode_q4_1(blocks: Blocks) -> Tensor:
    scales, codes = _encode_affine(blocks, 15)
    return torch.cat((scales, pack_nibbles(codes, 16)), dim=1)


def encode_q5_0(blocks: Blocks) -> Tensor:
    d, codes = _encode_symmetric(blocks, Q5_0)
    codes = codes.add_(16).to(torch.uint8)
    return torch.cat((d, pack_bit32(codes >> 4), pack_nibbles(codes & 15, 16)), dim=1)


def encode_q5_1(blocks: Blocks) -> Tensor:
    scales, codes = _encode_affine(blocks, 31)
    return torch.cat((scales, pack_bit32(codes >> 4), pack_nibbles(codes & 15, 16)), dim=1)
