"""Encoders of the K types: super-blocks of 256 weights, sub-blocks with 6- or 8-bit scales, float16 scales of those."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .ggml_layout import pack_q4_k, pack_q5_k, pack_q6_k
from .ggml_search import GROUP_MAX_EPS, AffineFit, SymmetricFit, affine_search, ordered_sum, positive_search, symmetric_search

BLOCK = 256
# super-blocks whose columns fit a core's cache
INNER = 512


def columns(blocks: Tensor, size: int) -> Tensor:
    """[n, 256] → [size, 256/size · n]: one sub-block per column; those of the same place in their block side by side."""
    return blocks.view(len(blocks), -1, size).permute(2, 1, 0).reshape(size, -1)


def rows(codes: Tensor, n: int) -> Tensor:
    """The inverse of `columns`, as uint8 [n, 256]."""
    return codes.to(torch.uint8).view(len(codes), -1, n).permute(2, 1, 0).reshape(n, -1)


def _slices(n: int) -> Iterator[slice]:
    return (slice(start, min(start + INNER, n)) for start in range(0, n, INNER))


def _affine_weights(x: Tensor, importance: Tensor | None, n: int) -> Tensor:
    """The weights ggml gives to the columns `x` [32, 8·n]: without importance √mean(x²) + |x|, with it importance·√(2·mean(x²) + x²)."""
    squares = x * x
    if importance is None:
        return x.abs() + (ordered_sum(squares) / 32).sqrt_()
    # the mean is over the 256 weights of a super-block, summed in their order
    total = ordered_sum(squares.view(32, 8, n).permute(1, 0, 2).reshape(BLOCK, n))
    sigma2 = (2 * total / BLOCK).repeat(8)
    return squares.add_(sigma2).sqrt_().mul_(importance)


def _requantize(x: Tensor, scale: Tensor, minimum: Tensor, fit: AffineFit, levels: int) -> Tensor:
    """Codes under the stored scale; where that is zero the codes of the search stay, as in ggml."""
    codes = ((x + minimum) / scale).round_().clamp_(0, levels)
    unscaled = scale == 0
    if unscaled.any():
        codes = torch.where(unscaled, ((x - fit.origin) * fit.iscale).round_().clamp_(0, levels), codes)
    return codes


def _store(x: Tensor) -> Tensor:
    """float16 [n, 1]."""
    return x.clamp(-65504.0, 65504.0).to(torch.float16).view(-1, 1)


def _six_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """x ≥ 0 [8, n] → codes 0..63 [8, n] and the scale [n], by the largest."""
    peak = x.amax(0)
    inverse = torch.where(peak > 0, torch.full_like(peak, 63.0) / peak, torch.zeros_like(peak))
    return (x * inverse).round_().clamp_(max=63), peak / torch.full_like(peak, 63.0)


def encode_affine(blocks: Tensor, importance: Tensor | None, levels: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Fields (d, dmin, sc, m, codes) of Q4_K (levels 15) and Q5_K (levels 31) for blocks [n, 256], importance alike."""
    n = len(blocks)
    first, delta, steps = (-0.9, 0.05, 36) if importance is not None else (-1.0, 0.1, 20) if levels == 15 else (-0.5, 0.1, 15)
    fields = blocks.new_empty(5, 8, n)
    for part in _slices(n):
        x = columns(blocks[part], 32)
        w = _affine_weights(x, None if importance is None else columns(importance[part], 32), part.stop - part.start)
        fit = affine_search(x, w, levels, first, delta, steps)
        fields[:, :, part] = torch.stack((*fit, ordered_sum(w))).view(5, 8, -1)
    scales, minima, iscale, origin, sum_w = fields
    if importance is None:
        (sc, d), (m, dmin) = _six_bits(scales), _six_bits(minima)
    else:
        (sc, d), (m, dmin) = positive_search(scales, sum_w, 63), positive_search(minima, sum_w, 63)
    d16, dmin16 = _store(d), _store(dmin)
    scales, minima = sc * d16.float().view(-1), m * dmin16.float().view(-1)
    codes = torch.empty(n, BLOCK, dtype=torch.uint8, device=blocks.device)
    for part in _slices(n):
        scale, minimum, *search = (t[:, part].reshape(-1) for t in (scales, minima, scales, minima, iscale, origin))
        x = columns(blocks[part], 32)
        codes[part] = rows(_requantize(x, scale, minimum, AffineFit(*search), levels), part.stop - part.start)
    return d16, dmin16, sc.to(torch.uint8).T.contiguous(), m.to(torch.uint8).T.contiguous(), codes


def encode_q4_k(blocks: Tensor, importance: Tensor | None, mode: str) -> Tensor:
    return pack_q4_k(*encode_affine(blocks, importance, 15))


def encode_q5_k(blocks: Tensor, importance: Tensor | None, mode: str) -> Tensor:
    return pack_q5_k(*encode_affine(blocks, importance, 31))


def _q6_scales(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Scales [16, n] → int8 codes [16, n] and float16 [n, 1]; the scale of largest magnitude gets −128."""
    index = scales.abs().argmax(0, keepdim=True)
    peak = scales.gather(0, index).squeeze(0)
    zero = peak.abs() < GROUP_MAX_EPS
    inverse = torch.full_like(peak, -128.0) / torch.where(zero, torch.ones_like(peak), peak)
    d = _store((torch.ones_like(inverse) / inverse).masked_fill_(zero, 0.0))
    return (scales * inverse).round_().clamp_(max=127).masked_fill_(zero, 0.0), d


def encode_q6_k(blocks: Tensor, importance: Tensor | None, mode: str) -> Tensor:
    n = len(blocks)
    fields = blocks.new_empty(2, 16, n)
    for part in _slices(n):
        x = columns(blocks[part], 16)
        w = x * x if importance is None else columns(importance[part], 16)
        fields[:, :, part] = torch.stack(symmetric_search(x, w, 32)).view(2, 16, -1)
    scales, iscale = fields
    sc, d = _q6_scales(scales)
    stored = sc * d.float().view(-1)
    codes = torch.empty(n, BLOCK, dtype=torch.uint8, device=blocks.device)
    for part in _slices(n):
        x = columns(blocks[part], 16)
        scale, search = stored[:, part].reshape(-1), iscale[:, part].reshape(-1)
        found = torch.where(scale == 0, x * search, x / scale).round_().clamp_(-32, 31).add_(32)
        codes[part] = rows(found, part.stop - part.start)
    empty = (sc == 0).all(0)
    codes[empty] = 0
    return pack_q6_k(d, sc.to(torch.int8).T.contiguous(), codes)
