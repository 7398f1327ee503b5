"""Encoders of the K types: super-blocks of 256 weights, sub-blocks with 6- or 8-bit scales, float16 scales of those."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .ggml_best_affine import AffineColumns, AffineFields, best_affine
from .ggml_layout import pack_q4_k, pack_q5_k, pack_q6_k
from .ggml_search import GROUP_MAX_EPS, AffineFit, ColumnSum, affine_search, divided, positive_search, signed_peak, symmetric_search

BLOCK = 256
# super-blocks whose columns stay in a core's cache
INNER = 256


def columns(blocks: Tensor, size: int) -> Tensor:
    """[n, k·size] → [size/16, 16, k·n]: one sub-block per column; those of the same place in their block side by side."""
    return blocks.view(len(blocks), -1, size).permute(2, 1, 0).reshape(size // 16, 16, -1)


def rows(codes: Tensor, n: int) -> Tensor:
    """The inverse of `columns`, as uint8 [n, k·size]."""
    return codes.to(torch.uint8).view(codes.shape[0] * 16, -1, n).permute(2, 1, 0).reshape(n, -1)


def slices(n: int) -> Iterator[slice]:
    return (slice(start, min(start + INNER, n)) for start in range(0, n, INNER))


def _root(x: Tensor) -> Tensor:
    """√x rounded correctly; float32 `sqrt` is an ulp off for some, and ggml's is not."""
    return x.double().sqrt_().float()


def _affine_weights(x: Tensor, importance: Tensor | None, n: int) -> Tensor:
    """ggml's weights of the columns `x` [2, 16, 8·n]: √mean(x²) + |x|, or with importance that times √(2·mean(x²) + x²)."""
    squares = x * x
    if importance is None:
        return x.abs() + _root(ColumnSum(x).of(squares) / 32)
    # here the mean is over the 256 weights of the super-block
    by_row = squares.view(32, 8, n).transpose(0, 1).reshape(16, 16, n)
    sigma2 = (2 * ColumnSum(by_row).of(by_row) / BLOCK).repeat(8)
    return _root(squares.add_(sigma2)).mul_(importance)


def _requantize(x: Tensor, scale: Tensor, minimum: Tensor, fit: AffineFit, levels: int) -> Tensor:
    """Codes under the stored scale; where that is zero the codes of the search stay, as in ggml."""
    codes = (x + minimum).div_(scale).round_().clamp_(0, levels)
    unscaled = scale == 0
    if unscaled.any():
        codes = torch.where(unscaled, ((x - fit.origin) * fit.iscale).round_().clamp_(0, levels), codes)
    return codes


def stored(x: Tensor) -> Tensor:
    """[n] → float16 [n, 1], finite."""
    return x.clamp(-65504.0, 65504.0).to(torch.float16).view(-1, 1)


def _six_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """x ≥ 0 [8, n] → codes 0..63 [8, n] and the scale [n], by the largest."""
    peak = x.amax(0)
    inverse = torch.where(peak > 0, divided(63.0, peak), torch.zeros_like(peak))
    return (x * inverse).round_().clamp_(max=63), peak / torch.full_like(peak, 63.0)


def encode_affine(blocks: Tensor, importance: Tensor | None, levels: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Fields (d, dmin, sc, m, codes) of Q4_K (levels 15) and Q5_K (levels 31) for blocks [n, 256], importance alike."""
    n = len(blocks)
    first, delta, steps = (-0.9, 0.05, 36) if importance is not None else (-1.0, 0.1, 20) if levels == 15 else (-0.5, 0.1, 15)
    fields = blocks.new_empty(5, 8, n)
    for part in slices(n):
        x = columns(blocks[part], 32)
        w = _affine_weights(x, None if importance is None else columns(importance[part], 32), part.stop - part.start)
        fit = affine_search(x, w, levels, first, delta, steps)
        fields[:, :, part] = torch.stack((*fit, ColumnSum(w).of(w))).view(5, 8, -1)
    scales, minima, iscale, origin, sum_w = fields
    if importance is None:
        (sc, d), (m, dmin) = _six_bits(scales), _six_bits(minima)
    else:
        (sc, d), (m, dmin) = positive_search(scales, sum_w, 63), positive_search(minima, sum_w, 63)
    d16, dmin16 = stored(d), stored(dmin)
    scales, minima = sc * d16.float().view(-1), m * dmin16.float().view(-1)
    codes = torch.empty(n, BLOCK, dtype=torch.uint8, device=blocks.device)
    for part in slices(n):
        scale, minimum, *search = (t[:, part].reshape(-1) for t in (scales, minima, scales, minima, iscale, origin))
        x = columns(blocks[part], 32)
        codes[part] = rows(_requantize(x, scale, minimum, AffineFit(*search), levels), part.stop - part.start)
    return d16, dmin16, sc.to(torch.uint8).T.contiguous(), m.to(torch.uint8).T.contiguous(), codes


def _objective(importance: Tensor | None) -> Tensor | None:
    """The weights of the squared error [n, 256]: a millionth of the block's mean is the least, so that no weight is forgotten."""
    if importance is None:
        return None
    mean = importance.mean(1, keepdim=True)
    return torch.where(mean > 0, torch.maximum(importance, 1e-6 * mean), torch.ones_like(mean))


def _improve_affine(blocks: Tensor, importance: Tensor | None, levels: int, fields: tuple[Tensor, ...]) -> None:
    """Replaces the fields (d, dmin, sc, m, codes), in place, of every super-block for which better ones are found."""
    objective = _objective(importance)
    for part in slices(len(blocks)):
        n = part.stop - part.start
        d, dmin, sc, m, codes = (field[part] for field in fields)
        x = AffineColumns(columns(blocks[part], 32), None if objective is None else columns(objective[part], 32), levels)
        given = AffineFields(d.float().view(-1), dmin.float().view(-1), sc.T.float(), m.T.float())
        error = x.error(x.x + given.minimum, columns(codes, 32).float(), given.scale).view(8, n).sum(0)
        found, found_error = best_affine(x, n)
        better = (found_error < error).nonzero().squeeze(1)
        d[better, 0], dmin[better, 0] = found.d[better].half(), found.dmin[better].half()
        sc[better], m[better] = found.sc.T[better].to(torch.uint8), found.m.T[better].to(torch.uint8)
        codes[better] = rows(x.rounded(found), n)[better]


def _encode_affine(
    blocks: Tensor, importance: Tensor | None, mode: str, levels: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    fields = encode_affine(blocks, importance, levels)
    if mode == "best":
        _improve_affine(blocks, importance, levels, fields)
    return fields


def encode_q4_k(blocks: Tensor, importance: Tensor | None, mode: str) -> Tensor:
    return pack_q4_k(*_encode_affine(blocks, importance, mode, 15))


def encode_q5_k(blocks: Tensor, importance: Tensor | None, mode: str) -> Tensor:
    return pack_q5_k(*_encode_affine(blocks, importance, mode, 31))


def _q6_scales(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Scales [16, n] → int8 codes [16, n] and float16 [n, 1]; the scale of largest magnitude gets −128."""
    peak = signed_peak(scales)
    zero = peak.abs() < GROUP_MAX_EPS
    inverse = divided(-128.0, torch.where(zero, torch.ones_like(peak), peak))
    d = stored(divided(1.0, inverse).masked_fill_(zero, 0.0))
    return (scales * inverse).round_().clamp_(max=127).masked_fill_(zero, 0.0), d


def encode_q6_k(blocks: Tensor, importance: Tensor | None, mode: str) -> Tensor:
    n = len(blocks)
    fields = blocks.new_empty(2, 16, n)
    for part in slices(n):
        x = columns(blocks[part], 16)
        w = x * x if importance is None else columns(importance[part], 16)
        fields[:, :, part] = torch.stack(symmetric_search(x, w, 32)).view(2, 16, -1)
    scales, iscale = fields
    sc, d = _q6_scales(scales)
    scales = sc * d.float().view(-1)
    codes = torch.empty(n, BLOCK, dtype=torch.uint8, device=blocks.device)
    for part in slices(n):
        x = columns(blocks[part], 16)
        scale, search = scales[:, part].reshape(-1), iscale[:, part].reshape(-1)
        found = x / scale
        unscaled = scale == 0
        if unscaled.any():
            found = torch.where(unscaled, x * search, found)
        codes[part] = rows(found.round_().clamp_(-32, 31).add_(32), part.stop - part.start)
    codes[(sc == 0).all(0)] = 0
    return pack_q6_k(d, sc.to(torch.int8).T.contiguous(), codes)
