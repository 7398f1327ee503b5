"""Encoders of the types with blocks of 32 weights and one or two float16 scales, and of the plain float types.

ggml's own way is one scale from the range of the block; with importance, and for IQ4_NL always, a search.
"""

import torch
from torch import Tensor

from . import ggml_best_affine as affine
from . import ggml_best_symmetric as symmetric
from .ggml_best_symmetric import SymmetricKind, inverse, peaks
from .ggml_codebook import VALUES, nearest_places
from .ggml_columns import Blocks, columns, exact_root, rows, stored
from .ggml_layout import half_bytes, pack_bit32, pack_nibbles
from .ggml_search import ColumnSum, affine_search, codebook_search, divided, signed_peak, symmetric_search

Q4_0 = SymmetricKind(-8, 7, 0, 0, peaks(-8, 7, 0.75, 2.0, 9))
Q5_0 = SymmetricKind(-16, 15, 0, 0, peaks(-16, 15, 1.6, 2.0, 9))
# −128 is left out: ggml never writes it, and kernels that negate a code could not
Q8_0 = SymmetricKind(-127, 127, 0, 0, peaks(-127, 127, 12.7, 1.0, 13)[:13])
IQ4_NL = SymmetricKind(VALUES[0], VALUES[-1], 0, 0, peaks(VALUES[0], VALUES[-1], 12.0, 20.0, 7), codebook=True)


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


def _search_weights(part: Blocks, x: Tensor) -> Tensor | None:
    """ggml's weights for its searches, importance·√(mean square of the row + x²), for columns x."""
    if part.importance is None or part.row_square is None:
        return None
    return exact_root((x * x).add_(part.row_square)).mul_(columns(part.importance, 32))


def _joined(fields: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(field) for field in zip(*fields, strict=True))


def _symmetric(part: Blocks, kind: SymmetricKind) -> tuple[Tensor, Tensor]:
    """float16 d [n, 1] and codes counted from the lowest, uint8 [n, 32], as ggml finds them for Q4_0 and Q5_0."""
    n, levels, x = len(part.x), -kind.low, columns(part.x, 32)
    w = _search_weights(part, x)
    if w is None:
        d = signed_peak(x.flatten(0, 1)) / -levels
        codes = (x * inverse(d)).add_(levels + 0.5).trunc_()
    else:
        d, iscale = symmetric_search(x, w, levels)
        codes = (x * iscale).round_().add_(levels).masked_fill_(iscale == 0, 0.0)
    return stored(d), rows(codes.clamp_(0, 2 * levels - 1), n)


def _q8_0(part: Blocks) -> tuple[Tensor, Tensor]:
    peak = part.x.abs().amax(1)
    d = peak / torch.full_like(peak, 127.0)
    return stored(d), round_away(part.x * inverse(d)[:, None]).add_(127).to(torch.uint8)


def _iq4_nl(part: Blocks) -> tuple[Tensor, Tensor]:
    x = columns(part.x, 32)
    w = x * x
    if part.importance is not None:
        w = exact_root(w.add_(ColumnSum(x).of(w) * 2 / 32)).mul_(columns(part.importance, 32))
    scale = codebook_search(x, w)
    iscale = torch.where(scale == 0, torch.zeros_like(scale), divided(1.0, scale))
    return stored(scale), rows(nearest_places(x * iscale), len(part.x))


def _affine(part: Blocks, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """float16 d and m [n, 1] and codes uint8 [n, 32], as ggml finds them for Q4_1 and Q5_1."""
    x = columns(part.x, 32)
    w = _search_weights(part, x)
    if w is None:
        low = x.amin((0, 1))
        span = x.amax((0, 1)) - low
        d = span / torch.full_like(span, levels)
        codes = (x - low).mul_(inverse(d)).add_(0.5).trunc_()
    else:
        d, minimum, iscale, origin = affine_search(x, w, levels, -0.9, 0.05, 36)
        low, codes = -minimum, (x - origin).mul_(iscale).round_()
    return stored(d), stored(low), rows(codes.clamp_(0, levels), len(part.x))


def _encode_symmetric(blocks: Blocks, kind: SymmetricKind) -> tuple[Tensor, Tensor]:
    """Bytes of d [n, 2] and codes as bytes [n, 32]."""
    d, codes = _joined([_symmetric(part, kind) for part in blocks.parts()])
    if blocks.best:
        symmetric.improve_one_level(blocks, kind, d, codes)
    return half_bytes(d), codes


def _encode_affine(blocks: Blocks, levels: int) -> tuple[Tensor, Tensor]:
    """Bytes of d and m [n, 4] and codes uint8 [n, 32]."""
    d, m, codes = _joined([_affine(part, levels) for part in blocks.parts()])
    if blocks.best:
        affine.improve_one_level(blocks, affine.AffineKind(levels, signed=True), d, m, codes)
    return torch.cat((half_bytes(d), half_bytes(m)), dim=1), codes


def encode_q8_0(blocks: Blocks) -> Tensor:
    d, codes = _joined([_q8_0(part) for part in blocks.parts()])
    if blocks.best:
        symmetric.improve_one_level(blocks, Q8_0, d, codes)
    return torch.cat((half_bytes(d), codes - 127), dim=1)


def encode_iq4_nl(blocks: Blocks) -> Tensor:
    d, codes = _joined([_iq4_nl(part) for part in blocks.parts()])
    if blocks.best:
        symmetric.improve_one_level(blocks, IQ4_NL, d, codes)
    return torch.cat((half_bytes(d), pack_nibbles(codes, 16)), dim=1)


def encode_q4_0(blocks: Blocks) -> Tensor:
    d, codes = _encode_symmetric(blocks, Q4_0)
    return torch.cat((d, pack_nibbles(codes, 16)), dim=1)


def encode_q4_1(blocks: Blocks) -> Tensor:
    scales, codes = _encode_affine(blocks, 15)
    return torch.cat((scales, pack_nibbles(codes, 16)), dim=1)


def encode_q5_0(blocks: Blocks) -> Tensor:
    d, codes = _encode_symmetric(blocks, Q5_0)
    return torch.cat((d, pack_bit32(codes >> 4), pack_nibbles(codes & 15, 16)), dim=1)


def encode_q5_1(blocks: Blocks) -> Tensor:
    scales, codes = _encode_affine(blocks, 31)
    return torch.cat((scales, pack_bit32(codes >> 4), pack_nibbles(codes & 15, 16)), dim=1)
