"""Encoders of the K types with a minimum, x ≈ d·sc·code − dmin·m: Q2_K, Q4_K, Q5_K. Super-blocks of 256 weights."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .ggml_best_affine import AffineBytes, AffineKind, improve_two_level
from .ggml_columns import Blocks, columns, exact_root, rows, stored
from .ggml_layout import pack_q2_k, pack_q4_k, pack_q5_k
from .ggml_search import SPAN_MIN, ColumnSum, affine_search, divided, positive_search


class Affine(NamedTuple):
    """A type: weights per sub-block, codes and sub-block scales, and how ggml searches without importance: the ladder (first,
    delta, steps) and whether by absolute error under the weights |x|. With importance, `spread`·mean(x²) goes into its weights."""

    size: int
    kind: AffineKind
    ladder: tuple[float, float, int]
    absolute: bool
    spread: float
    pack: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


Q2_K = Affine(16, AffineKind(3, 15), (-0.5, 0.1, 15), True, 1.0, pack_q2_k)
Q4_K = Affine(32, AffineKind(15, 63), (-1.0, 0.1, 20), False, 2.0, pack_q4_k)
Q5_K = Affine(32, AffineKind(31, 63), (-0.5, 0.1, 15), False, 2.0, pack_q5_k)
IMPORTANCE_LADDER = (-0.9, 0.05, 36)


def superblock_square(squares: Tensor, n: int) -> Tensor:
    """The mean of 256 squares, summed in their order: [size/16, 16, g·n] → [n]."""
    by_row = squares.view(squares.shape[0] * 16, -1, n).transpose(0, 1).reshape(16, 16, n)
    return ColumnSum(by_row).of(by_row) / 256


def importance_weights(x: Tensor, importance: Tensor, spread: float, n: int) -> Tensor:
    """ggml's weights with importance, importance·√(spread·mean(x²) + x²), for columns of n super-blocks."""
    squares = x * x
    sigma2 = (spread * superblock_square(squares, n)).repeat(x.shape[2] // n)
    return exact_root(squares.add_(sigma2)).mul_(importance)


def _weights(affine: Affine, x: Tensor, importance: Tensor | None, n: int) -> Tensor:
    """ggml's weights of columns: |x|, √mean(x²) + |x|, or with importance that times √(spread·mean(x²) + x²)."""
    if importance is not None:
        return importance_weights(x, importance, affine.spread, n)
    if affine.absolute:
        return x.abs()
    return x.abs() + exact_root(ColumnSum(x).of(x * x) / affine.size)


def _fits(affine: Affine, blocks: Blocks) -> Tensor:
    """Rows scale, minimum, inverse scale, origin of the search and sum of the weights: [5, g, n]."""
    plain = blocks.importance is None
    first, delta, steps = affine.ladder if plain else IMPORTANCE_LADDER
    fits = []
    for part in blocks.parts():
        n, x = len(part.x), columns(part.x, affine.size)
        w = _weights(affine, x, None if part.importance is None else columns(part.importance, affine.size), n)
        fit = affine_search(x, w, affine.kind.levels, first, delta, steps, absolute=plain and affine.absolute)
        fits.append(torch.stack((*fit, ColumnSum(w).of(w))).view(5, -1, n))
    return torch.cat(fits, dim=2)


def _by_the_largest(x: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """x ≥ 0 [g, n] → codes 0..top [g, n] and the scale [n] that gives the largest the largest code."""
    peak = x.amax(0) + 0.0  # not −0, whose float16 has a bit set
    iscale = torch.where(peak > SPAN_MIN, divided(top, peak), torch.zeros_like(peak))
    return (x * iscale).round_().clamp_(0, top), peak / torch.full_like(peak, top)


def _as_ggml(affine: Affine, blocks: Blocks) -> AffineBytes:
    scale, minimum, iscale, origin, sum_w = _fits(affine, blocks)
    top = affine.kind.top
    if blocks.importance is None:
        (sc, d), (m, dmin) = _by_the_largest(scale, top), _by_the_largest(minimum, top)
    else:
        (sc, d), (m, dmin) = positive_search(scale, sum_w, top), positive_search(minimum, sum_w, top)
    d16, dmin16 = stored(d), stored(dmin)
    scale, minimum = sc * d16.float().view(-1), m * dmin16.float().view(-1)
    codes, start = [], 0
    for part in blocks.parts():
        n, x = len(part.x), columns(part.x, affine.size)
        s, low, inverse, zero = (t[:, start : start + n].reshape(-1) for t in (scale, minimum, iscale, origin))
        found = (x + low).div_(s)
        unscaled = s == 0
        if unscaled.any():  # there ggml keeps the codes of the search
            found = torch.where(unscaled, (x - zero) * inverse, found)
        codes.append(rows(found.round_().clamp_(0, affine.kind.levels), n))
        start += n
    return AffineBytes(d16, dmin16, sc.to(torch.uint8).T.contiguous(), m.to(torch.uint8).T.contiguous(), torch.cat(codes))


def encode(affine: Affine, blocks: Blocks) -> Tensor:
    """The bytes of the blocks, uint8 [n, type_size]."""
    fields = _as_ggml(affine, blocks)
    if blocks.best:
        improve_two_level(blocks, affine.kind, affine.size, fields)
    return affine.pack(*fields)
