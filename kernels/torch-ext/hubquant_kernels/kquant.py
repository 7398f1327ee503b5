"""Encoders of the K types: super-blocks of 256 weights, sub-blocks with 6- or 8-bit scales, float16 scales of those."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import ggml_best_affine as affine
from . import ggml_best_symmetric as symmetric
from .ggml_columns import Blocks, columns, exact_root, rows, stored
from .ggml_layout import pack_q4_k, pack_q5_k, pack_q6_k
from .ggml_search import GROUP_MAX_EPS, ColumnSum, affine_search, divided, positive_search, signed_peak, symmetric_search

BLOCK = 256
Q6_K = symmetric.SymmetricKind(-32, 31, -128, 127, symmetric.peaks(-32, 31, 4.8, 1.25, 9))


class AffineBytes(NamedTuple):
    """What a block of x ≈ d·sc·code − dmin·m holds: float16 [n, 1] twice, uint8 [n, g] twice, uint8 [n, 256]."""

    d: Tensor
    dmin: Tensor
    sc: Tensor
    m: Tensor
    codes: Tensor


def _affine_weights(x: Tensor, importance: Tensor | None, n: int) -> Tensor:
    """ggml's weights of the columns `x` [2, 16, 8·n]: √mean(x²) + |x|, or with importance that times √(2·mean(x²) + x²)."""
    squares = x * x
    if importance is None:
        return x.abs() + exact_root(ColumnSum(x).of(squares) / 32)
    # here the mean is over the 256 weights of the super-block
    by_row = squares.view(32, 8, n).transpose(0, 1).reshape(16, 16, n)
    sigma2 = (2 * ColumnSum(by_row).of(by_row) / BLOCK).repeat(8)
    return exact_root(squares.add_(sigma2)).mul_(importance)


def _six_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """x ≥ 0 [8, n] → codes 0..63 [8, n] and the scale [n], by the largest."""
    peak = x.amax(0) + 0.0  # not −0, whose float16 has a bit set
    scale = torch.where(peak > 0, divided(63.0, peak), torch.zeros_like(peak))
    return (x * scale).round_().clamp_(max=63), peak / torch.full_like(peak, 63.0)


def _affine_fits(blocks: Blocks, levels: int) -> Tensor:
    """Rows scale, minimum, inverse scale, origin of the search and sum of the weights: [5, 8, n]."""
    first, delta, steps = (-1.0, 0.1, 20) if levels == 15 else (-0.5, 0.1, 15)
    if blocks.importance is not None:
        first, delta, steps = -0.9, 0.05, 36
    fits = []
    for part in blocks.parts():
        n, x = len(part.x), columns(part.x, 32)
        w = _affine_weights(x, None if part.importance is None else columns(part.importance, 32), n)
        fits.append(torch.stack((*affine_search(x, w, levels, first, delta, steps), ColumnSum(w).of(w))).view(5, 8, n))
    return torch.cat(fits, dim=2)


def _as_ggml_affine(blocks: Blocks, levels: int) -> AffineBytes:
    scale, minimum, iscale, origin, sum_w = _affine_fits(blocks, levels)
    if blocks.importance is None:
        (sc, d), (m, dmin) = _six_bits(scale), _six_bits(minimum)
    else:
        (sc, d), (m, dmin) = positive_search(scale, sum_w, 63), positive_search(minimum, sum_w, 63)
    d16, dmin16 = stored(d), stored(dmin)
    scale, minimum = sc * d16.float().view(-1), m * dmin16.float().view(-1)
    codes, start = [], 0
    for part in blocks.parts():
        n, x = len(part.x), columns(part.x, 32)
        s, low, inverse, zero = (t[:, start : start + n].reshape(-1) for t in (scale, minimum, iscale, origin))
        found = (x + low).div_(s)
        unscaled = s == 0
        if unscaled.any():  # there ggml keeps the codes of the search
            found = torch.where(unscaled, (x - zero) * inverse, found)
        codes.append(rows(found.round_().clamp_(0, levels), n))
        start += n
    return AffineBytes(d16, dmin16, sc.to(torch.uint8).T.contiguous(), m.to(torch.uint8).T.contiguous(), torch.cat(codes))


def _improve_affine(blocks: Blocks, levels: int, given: AffineBytes) -> None:
    """Replaces, in place, every super-block for which a better one is found."""
    start = 0
    for part in blocks.parts():
        n, w = len(part.x), part.weights()
        d, dmin, sc, m, codes = (t[start : start + n] for t in given)
        x = affine.AffineColumns(columns(part.x, 32), None if w is None else columns(w, 32), levels)
        old = affine.AffineFields(d.float().view(-1), dmin.float().view(-1), sc.T.float(), m.T.float())
        old_codes = columns(codes, 32).flatten(0, 1).float()
        error = x.error(x.x + old.minimum, old_codes, old.scale).view(8, n).sum(0)
        new, new_error = affine.best_two_level(x, n)
        better = (new_error < error).nonzero().squeeze(1)
        d[better, 0], dmin[better, 0] = new.d[better].half(), new.dmin[better].half()
        sc[better], m[better] = new.sc.T[better].to(torch.uint8), new.m.T[better].to(torch.uint8)
        codes[better] = rows(x.rounded(new.scale, new.minimum).view(2, 16, -1), n)[better]
        start += n


def _encode_affine(blocks: Blocks, levels: int) -> AffineBytes:
    fields = _as_ggml_affine(blocks, levels)
    if blocks.best:
        _improve_affine(blocks, levels, fields)
    return fields


def encode_q4_k(blocks: Blocks) -> Tensor:
    return pack_q4_k(*_encode_affine(blocks, 15))


def encode_q5_k(blocks: Blocks) -> Tensor:
    return pack_q5_k(*_encode_affine(blocks, 31))


def _q6_scales(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Scales [16, n] → codes −128..127 [16, n] and float16 [n, 1]; the scale of largest magnitude gets −128."""
    peak = signed_peak(scales)
    zero = peak.abs() < GROUP_MAX_EPS
    inverse = divided(-128.0, torch.where(zero, torch.ones_like(peak), peak))
    d = stored(divided(1.0, inverse).masked_fill_(zero, 0.0))
    return (scales * inverse).round_().clamp_(max=127).masked_fill_(zero, 0.0), d


def _as_ggml_q6_k(blocks: Blocks) -> tuple[Tensor, Tensor, Tensor]:
    """d [n, 1], sub-block scales int8 [n, 16] and codes uint8 [n, 256]."""
    fits = []
    for part in blocks.parts():
        x = columns(part.x, 16)
        w = x * x if part.importance is None else columns(part.importance, 16)
        fits.append(torch.stack(symmetric_search(x, w, 32)).view(2, 16, -1))
    scale, iscale = torch.cat(fits, dim=2)
    sc, d = _q6_scales(scale)
    scale = sc * d.float().view(-1)
    codes, start = [], 0
    for part in blocks.parts():
        n, x = len(part.x), columns(part.x, 16)
        s, inverse = scale[:, start : start + n].reshape(-1), iscale[:, start : start + n].reshape(-1)
        found = x / s
        unscaled = s == 0
        if unscaled.any():  # there ggml keeps the codes of the search, 0 where all weights are
            found = torch.where(unscaled, torch.where(inverse == 0, torch.full_like(x, -32.0), x * inverse), found)
        codes.append(rows(found.round_().clamp_(-32, 31).add_(32), n))
        start += n
    found = torch.cat(codes)
    found[(sc == 0).all(0)] = 0
    return d, sc.to(torch.int8).T.contiguous(), found


def _improve_q6_k(blocks: Blocks, d: Tensor, sc: Tensor, codes: Tensor) -> None:
    """Replaces, in place, every super-block for which a better one is found."""
    start = 0
    for part in blocks.parts():
        n, w = len(part.x), part.weights()
        place = slice(start, start + n)
        x = symmetric.SymmetricColumns(columns(part.x, 16), None if w is None else columns(w, 16), Q6_K)
        scale = (sc[place].T.float() * d[place].float().view(-1)).reshape(-1)
        error = x.error(columns(codes[place], 16).flatten(0, 1).float().sub_(32), scale).view(16, n).sum(0)
        new_d, new_sc, new_error = symmetric.best_two_level(x, n)
        better = (new_error < error).nonzero().squeeze(1)
        d[place][better, 0] = new_d[better].half()
        sc[place][better] = new_sc.T[better].to(torch.int8)
        codes[place][better] = rows(x.rounded(new_d * new_sc).add_(32).view(1, 16, -1), n)[better]
        start += n


def encode_q6_k(blocks: Blocks) -> Tensor:
    fields = _as_ggml_q6_k(blocks)
    if blocks.best:
        _improve_q6_k(blocks, *fields)
    return pack_q6_k(*fields)
