"""ggml's searches for the scale of a sub-block, for many sub-blocks at once.

Every function works on columns: `x` is [size, n], one sub-block of `size` weights per column, so that each step is one
vector operation over n. Sums run in ggml's order and operations are not fused, so that the results are ggml's to the last
bit where its build does not fuse either. Source: make_qx_quants, make_qkx2_quants, make_qkx3_quants, make_qp_quants and
nearest_int of ggml-quants.c; nearest_int rounds halves to even, as `round` does.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# below this ggml takes a group for all zero
GROUP_MAX_EPS = 1e-15


class AffineFit(NamedTuple):
    """x ≈ scale·code − minimum, all [n]; the codes were round((x − origin)·iscale)."""

    scale: Tensor
    minimum: Tensor
    iscale: Tensor
    origin: Tensor


class SymmetricFit(NamedTuple):
    """x ≈ scale·code, all [n]; the codes were round(x·iscale)."""

    scale: Tensor
    iscale: Tensor


def ordered_sum(x: Tensor) -> Tensor:
    """The sum over dim 0, first row first."""
    total = x[0].clone()
    for row in x.unbind(0)[1:]:
        total += row
    return total


def _divided(numerator: float, x: Tensor) -> Tensor:
    # a Python number over a tensor would be computed as its reciprocal times the number: another rounding
    return torch.full_like(x, numerator) / x


def _float32(*terms: float) -> float:
    """The sum of the terms in float32 arithmetic, left to right."""
    total = torch.tensor(terms[0], dtype=torch.float32)
    for term in terms[1:]:
        total = total + torch.tensor(term, dtype=torch.float32)
    return total.item()


def _step(first: float, delta: float, index: int) -> float:
    """first + delta·index in float32."""
    return _float32(first, (torch.tensor(delta, dtype=torch.float32) * index).item())


def _weighted_error(x: Tensor, w: Tensor, codes: Tensor, scale: Tensor, origin: Tensor, absolute: bool) -> Tensor:
    difference = torch.mul(codes, scale).add_(origin).sub_(x)
    difference = difference.abs_() if absolute else difference.square_()
    return ordered_sum(difference.mul_(w))


def affine_search(x: Tensor, w: Tensor, levels: int, first: float, delta: float, steps: int, absolute: bool = False) -> AffineFit:
    """Fits scale and minimum of each column with codes 0..levels under weights `w` [size, n].

    Starting from the range of the column, tries the inverse scales (levels + first + delta·i) / range, i = 0..steps, each
    followed by a weighted least-squares fit, and keeps the one with the lowest squared (or absolute) error. A fit that was
    kept moves the lower end of the range for the trials after it.
    """
    low, high = x.amin(0).clamp_(max=0.0), x.amax(0)
    flat = high <= low
    high = torch.where(flat, low + 1.0, high)
    sum_w, sum_x = ordered_sum(w), ordered_sum(w * x)

    iscale = _divided(levels, high - low)
    scale, minimum, origin = _divided(1.0, iscale), low, low
    codes = (x - low).mul_(iscale).round_().clamp_(0, levels)
    best = _weighted_error(x, w, codes, scale, low, absolute)
    wl, product = torch.empty_like(x), torch.empty_like(x)
    for index in range(steps + 1):
        trial = _divided(_float32(_step(first, delta, index), levels), high - minimum)
        torch.sub(x, minimum, out=codes).mul_(trial).round_().clamp_(0, levels)
        torch.mul(w, codes, out=wl)
        sum_l = ordered_sum(wl)
        sum_l2 = ordered_sum(torch.mul(wl, codes, out=product))
        sum_xl = ordered_sum(torch.mul(wl, x, out=product))
        determinant = sum_w * sum_l2 - sum_l * sum_l
        trial_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        trial_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        positive = trial_minimum > 0
        trial_scale = torch.where(positive, sum_xl / sum_l2, trial_scale)
        trial_minimum.masked_fill_(positive, 0.0)
        error = _weighted_error(x, w, codes, trial_scale, trial_minimum, absolute)
        better = (determinant > 0) & (error < best)
        best = torch.where(better, error, best)
        origin = torch.where(better, minimum, origin)
        iscale = torch.where(better, trial, iscale)
        scale = torch.where(better, trial_scale, scale)
        minimum = torch.where(better, trial_minimum, minimum)
    return AffineFit(scale.masked_fill(flat, 0.0), torch.where(flat, -low, -minimum), iscale.masked_fill(flat, 0.0), origin)


def _signed_peak(x: Tensor) -> Tensor:
    """The entry of largest magnitude of each column, the first of them."""
    index = x.abs().argmax(0, keepdim=True)
    return x.gather(0, index).squeeze(0)


def symmetric_search(x: Tensor, w: Tensor, levels: int) -> SymmetricFit:
    """Fits the scale of each column with codes −levels..levels−1 under weights `w` [size, n].

    Tries the inverse scales −(levels + 0.1·i) / peak, i = 0, −9..9, and keeps the first with the highest (Σwxl)²/Σwl².
    """
    peak = _signed_peak(x)
    zero = peak.abs() < GROUP_MAX_EPS
    peak = torch.where(zero, torch.ones_like(peak), peak)
    wx = w * x
    codes, product = torch.empty_like(x), torch.empty_like(x)
    scale = best = iscale = torch.zeros_like(peak)
    for index in (0, *range(-9, 0), *range(1, 10)):
        trial = _divided(-_step(levels, 0.1, index), peak)
        torch.mul(x, trial, out=codes).round_().clamp_(-levels, levels - 1)
        sum_lx = ordered_sum(torch.mul(wx, codes, out=product))
        sum_l2 = ordered_sum(torch.mul(w, codes, out=product).mul_(codes))
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        if index == 0:
            better, iscale = sum_l2 > 0, trial
        fitted = sum_lx / sum_l2
        scale = torch.where(better, fitted, scale)
        best = torch.where(better, fitted * sum_lx, best)
        iscale = torch.where(better, trial, iscale)
    return SymmetricFit(scale.masked_fill(zero, 0.0), iscale.masked_fill(zero, 0.0))


def positive_search(x: Tensor, w: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Codes 0..levels [size, n] for x ≥ 0 and the scale [n], so that x ≈ scale·code under weights `w` [size, n].

    Nine inverse scales round levels / max(x), then up to five sweeps that move one code at a time to where the
    least-squares scale of the others wants it, if that lowers the error.
    """
    peak = x.amax(0)
    zero = peak < GROUP_MAX_EPS
    peak = torch.where(zero, torch.ones_like(peak), peak)
    iscale = _divided(levels, peak)
    best = torch.full_like(peak, torch.inf)
    for index in (0, *range(-4, 0), *range(1, 5)):
        trial = _divided(_float32(_step(0.0, 0.1, index), levels), peak)
        codes = (x * trial).round_().clamp_(max=levels)
        error = ordered_sum((x - codes * _divided(1.0, trial)).square_().mul_(w))
        better = error < best
        best = torch.where(better, error, best)
        iscale = torch.where(better, trial, iscale)
    codes = (x * iscale).round_().clamp_(max=levels)
    wx = w * x
    sum_lx, sum_l2 = ordered_sum(wx * codes), ordered_sum(w * codes * codes)
    for _ in range(5):
        changed = torch.zeros_like(zero)
        for row, w_row, wx_row, x_row in zip(codes, w, wx, x, strict=True):
            others_lx = sum_lx - wx_row * row
            others_l2 = sum_l2 - w_row * row * row
            moved = (x_row * others_l2 / others_lx).round_().clamp_(max=levels)
            lx = others_lx + wx_row * moved
            l2 = others_l2 + w_row * moved * moved
            take = (others_lx > 0) & (others_l2 > 0) & (moved != row) & (lx * lx * sum_l2 > sum_lx * sum_lx * l2)
            row.copy_(torch.where(take, moved, row))
            sum_lx = torch.where(take, lx, sum_lx)
            sum_l2 = torch.where(take, l2, sum_l2)
            changed |= take
        if not changed.any():
            break
    scale = torch.where(sum_l2 > 0, sum_lx / sum_l2, torch.zeros_like(sum_l2))
    return codes.masked_fill_(zero, 0.0), scale.masked_fill_(zero, 0.0)
