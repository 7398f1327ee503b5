"""Encoders of the types with sub-block scales and no minimum, x ≈ d·sc·code: Q3_K, Q6_K, IQ4_XS. Super-blocks of 256 weights."""

import torch
from torch import Tensor

from .ggml_best_symmetric import SymmetricKind, improve_two_level, peaks
from .ggml_codebook import VALUES, nearest_places
from .ggml_columns import Blocks, columns, rows, stored
from .ggml_layout import pack_iq4_xs, pack_q3_k, pack_q6_k
from .ggml_search import GROUP_MAX_EPS, ColumnSum, codebook_search, divided, improve_codes, ratio, signed_peak, symmetric_search
from .kquant import importance_weights

Q3_K = SymmetricKind(-4, 3, -32, 31, peaks(-4, 3, 0.75, 1.5, 7))
Q6_K = SymmetricKind(-32, 31, -128, 127, peaks(-32, 31, 4.8, 1.25, 9))
IQ4_XS = SymmetricKind(VALUES[0], VALUES[-1], -32, 31, peaks(VALUES[0], VALUES[-1], 12.0, 20.0, 7), codebook=True)

# scales [g, n], codes of the search as bytes [n, 256], sum of the weights [g, n]
Fits = tuple[Tensor, Tensor, Tensor]


def _joined(parts: list[Fits]) -> Fits:
    scales, codes, sums = zip(*parts, strict=True)
    return torch.cat(scales, dim=1), torch.cat(codes), torch.cat(sums, dim=1)


def _searched(x: Tensor, w: Tensor, levels: int, n: int) -> Fits:
    scale, iscale = symmetric_search(x, w, levels)
    codes = (x * iscale).round_().clamp_(-levels, levels - 1).add_(levels).masked_fill_(iscale == 0, 0.0)
    return scale.view(-1, n), rows(codes, n), ColumnSum(w).of(w).view(-1, n)


def _by_the_peak(scales: Tensor, lowest: int) -> tuple[Tensor, Tensor]:
    """Scales [g, n] → codes from `lowest` [g, n] and d [n]; the scale of largest magnitude gets the lowest code."""
    peak = signed_peak(scales)
    zero = peak.abs() < (GROUP_MAX_EPS if lowest == -128 else 1e-45)
    inverse = divided(lowest, torch.where(zero, torch.ones_like(peak), peak))
    d = divided(1.0, inverse).masked_fill_(zero, 0.0)
    return (scales * inverse).round_().clamp_(lowest, -lowest - 1).masked_fill_(zero, 0.0), d


def _requantized(blocks: Blocks, scale: Tensor, levels: int, codes: Tensor) -> Tensor:
    """Bytes of the codes under the stored scales [16, n]; where that is zero the codes of the search stay, as in ggml."""
    found, start = [], 0
    for part in blocks.parts():
        n, x = len(part.x), columns(part.x, 16)
        s = scale[:, start : start + n].reshape(-1)
        new = (x / s).round_().clamp_(-levels, levels - 1).add_(levels)
        unscaled = s == 0
        if unscaled.any():
            new = torch.where(unscaled, columns(codes[start : start + n], 16).float(), new)
        found.append(rows(new, n))
        start += n
    return torch.cat(found)


def encode_q6_k(blocks: Blocks) -> Tensor:
    parts = []
    for part in blocks.parts():
        x = columns(part.x, 16)
        w = x * x if part.importance is None else columns(part.importance, 16)
        parts.append(_searched(x, w, 32, len(part.x)))
    scales, codes, _ = _joined(parts)
    sc, d = _by_the_peak(scales, -128)
    d16 = stored(d)
    codes = _requantized(blocks, sc * d16.float().view(-1), 32, codes)
    codes[(sc == 0).all(0)] = 0
    fields = d16, sc.to(torch.int8).T.contiguous(), codes
    if blocks.best:
        improve_two_level(blocks, Q6_K, 16, *fields)
    return pack_q6_k(*fields)


def _q3_plain(x: Tensor, n: int) -> Fits:
    """One rounding by the peak, then codes moved one at a time under the weights x² (make_q3_quants)."""
    flat = x.flatten(0, 1)
    peak = signed_peak(flat)
    zero = peak.abs() < GROUP_MAX_EPS
    codes = (flat * divided(-4.0, torch.where(zero, torch.ones_like(peak), peak))).round_().clamp_(-4, 3)
    scale = ratio(*improve_codes(flat, flat * flat, codes, -4, 3)).masked_fill_(zero, 0.0)
    held = codes.add_(4).masked_fill_(zero, 0.0)
    return scale.view(-1, n), rows(held.view_as(x), n), torch.zeros(16, n, device=x.device)


def _q3_weighted(x: Tensor, importance: Tensor, n: int) -> Fits:
    return _searched(x, importance_weights(x, importance, 2.0, n), 4, n)


def encode_q3_k(blocks: Blocks) -> Tensor:
    parts = []
    for part in blocks.parts():
        n, x = len(part.x), columns(part.x, 16)
        parts.append(_q3_plain(x, n) if part.importance is None else _q3_weighted(x, columns(part.importance, 16), n))
    scales, codes, sum_w = _joined(parts)
    if blocks.importance is None:
        sc, d = _by_the_peak(scales, -32)
        sc = sc.masked_fill_(d == 0, -32.0)
    else:
        d, iscale = symmetric_search(scales.view(1, 16, -1), sum_w.view(1, 16, -1), 32)
        sc = (scales * iscale).round_().clamp_(-32, 31).masked_fill_(iscale == 0, -32.0)
    d16 = stored(d)
    fields = d16, sc.to(torch.int8).T.contiguous(), _requantized(blocks, sc * d16.float().view(-1), 4, codes)
    if blocks.best:
        improve_two_level(blocks, Q3_K, 16, *fields)
    return pack_q3_k(*fields)


def encode_iq4_xs(blocks: Blocks) -> Tensor:
    scales = []
    for part in blocks.parts():
        n, x = len(part.x), columns(part.x, 32)
        w = x * x if part.importance is None else importance_weights(x, columns(part.importance, 32), 2.0, n)
        scales.append(codebook_search(x, w).view(8, n))
    scale = torch.cat(scales, dim=1)
    d = signed_peak(scale) / -32
    inverse = torch.where(d == 0, torch.zeros_like(d), divided(1.0, d))
    sc = (scale * inverse).round_().clamp_(-32, 31)
    scale = d * sc  # not of the float16 d: so ggml has it
    codes, start = [], 0
    for part in blocks.parts():
        n, x = len(part.x), columns(part.x, 32)
        s = scale[:, start : start + n].reshape(-1)
        codes.append(rows(nearest_places(x * torch.where(s == 0, torch.zeros_like(s), divided(1.0, s))), n))
        start += n
    fields = stored(d), sc.to(torch.int8).T.contiguous(), torch.cat(codes)
    if blocks.best:
        improve_two_level(blocks, IQ4_XS, 32, *fields)
    return pack_iq4_xs(*fields)
