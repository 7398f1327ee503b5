"""ggml's searches for the scale of a sub-block, for many sub-blocks at once.

Every function works on columns: `x` is [size/16, 16, n], one sub-block of `size` weights per column, so that each step is
one vector operation over n. Sums run in ggml's order and operations are not fused, so that the results are ggml's to the
last bit where its build does not fuse either. Source: make_qx_quants, make_qkx2_quants, make_qkx3_quants, make_qp_quants
and nearest_int of ggml-quants.c; nearest_int rounds halves to even, as `round` does.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .ggml_codebook import VALUES, nearest_values

# below this ggml takes a group for all zero
GROUP_MAX_EPS = 1e-15
# below this the inverse scale of a range overflows, which ggml does not mind; the float16 scale is zero long before
SPAN_MIN = 1e-36


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


class ColumnSum:
    """Adds up the columns of `terms` [k, 16, n] in the order of their rows, as a C loop does.

    `sum` over at most 17 rows does that itself (n a multiple of 32), and much faster than row by row; so 16 terms are added
    at a time, the running total standing in the row before the next 16.
    """

    def __init__(self, like: Tensor) -> None:
        parts, _, n = like.shape
        rows = like.new_empty(17 * parts - 1, n)
        self.terms = rows.as_strided(like.shape, (17 * n, n, 1))
        starts = (-1, *range(16, 17 * parts - 1, 17))
        self._parts = [rows[max(start, 0) : start + 17] for start in starts]
        self._totals = [rows[start] for start in starts[1:]]

    def of(self, terms: Tensor) -> Tensor:
        self.terms.copy_(terms)
        return self.total()

    def of_product(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        torch.mul(a, b, out=self.terms)
        return self.total(out)

    def total(self, out: Tensor | None = None) -> Tensor:
        for part, total in zip(self._parts, self._totals, strict=False):
            torch.sum(part, 0, out=total)
        return torch.sum(self._parts[-1], 0, out=out)


def divided(numerator: float, x: Tensor) -> Tensor:
    """numerator / x, rounded once: a Python number over a tensor is its reciprocal times the number."""
    return torch.div(torch.tensor(numerator, dtype=x.dtype), x)


@cache
def _ladder(levels: int, first: float, delta: float, steps: range) -> tuple[float, ...]:
    """levels + (first + delta·i) for i in steps, each operation in float32."""
    offsets = torch.tensor(first) + torch.tensor(delta) * torch.tensor(steps, dtype=torch.float32)
    return tuple((offsets + levels).tolist())


def keep(kept: Tensor, trial: Tensor, better: Tensor) -> None:
    """The columns of `trial` [k, n] replace those of `kept` where `better` [n]; `trial` is spent.

    On bits, without a branch per element: three times as fast as `where`.
    """
    mask = better.to(torch.int32).neg_()
    bits, others = kept.view(torch.int32), trial.view(torch.int32)
    bits.bitwise_xor_(others.bitwise_xor_(bits).bitwise_and_(mask))


class _LeastSquares:
    """Scale and minimum of x ≈ scale·code + minimum ≤ 0, in ggml's order of operations."""

    def __init__(self, x: Tensor, w: Tensor) -> None:
        self.x, self.w = x, w
        self.sums, self.weighted = ColumnSum(x), ColumnSum(x)
        # rows Σwl², Σwlx, Σwx, Σwl; of the products below determinant, then numerators of scale and minimum
        self.rows, self.left, self.right = x.new_empty(4, x.shape[2]), x.new_empty(3, x.shape[2]), x.new_empty(3, x.shape[2])
        self.sum_w = self.sums.of(w)
        self.sums.of_product(w, x, out=self.rows[2])

    def fit(self, codes: Tensor, out: Tensor) -> Tensor:
        """Writes scale and minimum into `out` [2, n]; returns where they are valid."""
        l2, lx, x, l = self.rows  # noqa: E741
        self.weighted.of_product(self.w, codes, out=l)
        self.sums.of_product(self.weighted.terms, codes, out=l2)
        self.sums.of_product(self.weighted.terms, self.x, out=lx)
        torch.mul(self.rows[:2], self.sum_w, out=self.left[:2])
        torch.mul(l2, x, out=self.left[2])
        torch.mul(l, l, out=self.right[0])
        torch.mul(x, l, out=self.right[1])
        torch.mul(l, lx, out=self.right[2])
        self.left.sub_(self.right)
        torch.div(self.left[1:], self.left[0], out=out)
        scale, minimum = out
        positive = minimum > 0
        if positive.any():
            scale.copy_(torch.where(positive, lx / l2, scale))
            minimum.masked_fill_(positive, 0.0)
        return self.left[0] > 0

    def error(self, codes: Tensor, scale: Tensor, minimum: Tensor, absolute: bool, out: Tensor) -> Tensor:
        """Σ w·|scale·code + minimum − x|^(1 or 2) into `out` [n]; the codes are spent."""
        difference = codes.mul_(scale).add_(minimum).sub_(self.x)
        return self.sums.of_product(difference.abs_() if absolute else difference.square_(), self.w, out=out)


def affine_search(x: Tensor, w: Tensor, levels: int, first: float, delta: float, steps: int, absolute: bool = False) -> AffineFit:
    """Fits scale and minimum of each column with codes 0..levels under weights `w` (like x).

    Starting from the range of the column, tries the inverse scales (levels + first + delta·i) / range, i = 0..steps, each
    followed by a weighted least-squares fit, and keeps the one with the lowest squared (or absolute) error. A fit that was
    kept moves the lower end of the range for the trials after it.
    """
    problem, codes = _LeastSquares(x, w), torch.empty_like(x)
    low, high = x.amin((0, 1)).clamp_(max=0.0), x.amax((0, 1))
    flat = high - low < SPAN_MIN
    high = torch.where(flat, low + 1.0, high)

    iscale = divided(levels, high - low)
    kept = torch.stack((low, divided(1.0, iscale), low, iscale, low))  # rows error, scale, minimum, inverse scale, origin
    torch.sub(x, low, out=codes).mul_(iscale).round_().clamp_(0, levels)
    problem.error(codes, kept[1], low, absolute, out=kept[0])
    _affine_trials(problem, kept, high, _ladder(levels, first, delta, range(steps + 1)), levels, absolute)
    _, scale, minimum, iscale, origin = kept
    return AffineFit(scale.masked_fill(flat, 0.0), torch.where(flat, -low, -minimum), iscale.masked_fill(flat, 0.0), origin)


def _affine_trials(
    problem: _LeastSquares, kept: Tensor, high: Tensor, ladder: tuple[float, ...], levels: int, absolute: bool
) -> None:
    x, codes, trial = problem.x, torch.empty_like(problem.x), torch.empty_like(kept)
    error, scale, minimum, iscale, origin = trial
    for numerator in ladder:
        origin.copy_(kept[2])
        torch.div(torch.tensor(numerator), high - origin, out=iscale)
        torch.sub(x, origin, out=codes).mul_(iscale).round_().clamp_(0, levels)
        valid = problem.fit(codes, out=trial[1:3])
        problem.error(codes, scale, minimum, absolute, out=error)
        keep(kept, trial, valid & (error < kept[0]))


def signed_peak(x: Tensor) -> Tensor:
    """The entry of largest magnitude of each column of [k, n], the first of them."""
    low, high = x.amin(0), x.amax(0)
    peak = torch.where(high > -low, high, low)
    tied = (high == -low).nonzero().squeeze(1)
    if len(tied):  # argmax, which finds the first, takes a hundred times as long
        some = x[:, tied]
        peak[tied] = some.gather(0, some.abs().argmax(0, keepdim=True)).squeeze(0)
    return peak


def symmetric_search(x: Tensor, w: Tensor, levels: int) -> SymmetricFit:
    """Fits the scale of each column with codes −levels..levels−1 under weights `w` (like x).

    Tries the inverse scales −(levels + 0.1·i) / peak, i = 0, −9..9, and keeps the first with the highest (Σwxl)²/Σwl².
    """
    peak = signed_peak(x.flatten(0, 1))
    zero = peak.abs() < GROUP_MAX_EPS
    peak = torch.where(zero, torch.ones_like(peak), peak)
    ladder = _ladder(levels, 0.0, 0.1, range(-9, 10))
    numerators = (ladder[9], *ladder[:9], *ladder[10:])
    iscales = torch.stack([divided(-numerator, peak) for numerator in numerators])
    scale, iscale = _symmetric_trials(x, w, iscales, levels)
    return SymmetricFit(scale.masked_fill(zero, 0.0), iscale.masked_fill(zero, 0.0))


def _symmetric_trials(x: Tensor, w: Tensor, iscales: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    sums, codes, wl, wx = ColumnSum(x), torch.empty_like(x), torch.empty_like(x), w * x
    kept = torch.stack((torch.zeros_like(iscales[0]), torch.zeros_like(iscales[0]), iscales[0]))
    trial = torch.empty_like(kept)
    best, scale, iscale = trial
    for i, inverse in enumerate(iscales):
        iscale.copy_(inverse)
        torch.mul(x, iscale, out=codes).round_().clamp_(-levels, levels - 1)
        sum_lx = sums.of_product(wx, codes)
        sum_l2 = sums.of_product(torch.mul(w, codes, out=wl), codes)
        torch.div(sum_lx, sum_l2, out=scale)
        torch.mul(scale, sum_lx, out=best)
        better = sum_l2 > 0
        keep(kept, trial, better & (sum_lx.square() > kept[0] * sum_l2) if i else better)
    return kept[1], kept[2]


def codebook_search(x: Tensor, w: Tensor) -> Tensor:
    """The scale [n] of each column for the codes of ggml_codebook under weights `w` (like x).

    Tries the scales that give the peak −first value, then first value − 7..7, and keeps the first with the highest
    (Σwxl)²/Σwl².
    """
    peak = signed_peak(x.flatten(0, 1))
    zero = peak.abs() < GROUP_MAX_EPS
    peak = torch.where(zero, torch.ones_like(peak), peak)
    first = divided(1.0, peak.neg() / VALUES[0])
    iscales = torch.stack([first, *(divided(numerator, peak) for numerator in range(VALUES[0] - 7, VALUES[0] + 8))])
    return _codebook_trials(x, w, iscales).masked_fill(zero, 0.0)


def _codebook_trials(x: Tensor, w: Tensor, iscales: Tensor) -> Tensor:
    sums, wl = ColumnSum(x), torch.empty_like(x)
    kept = torch.zeros_like(iscales[:2])
    trial = torch.empty_like(kept)
    best, scale = trial
    for i, iscale in enumerate(iscales):
        codes = nearest_values(x * iscale)
        torch.mul(w, codes, out=wl)
        sum_lx, sum_l2 = sums.of_product(wl, x), sums.of_product(wl, codes)
        torch.div(sum_lx, sum_l2, out=scale)
        torch.mul(scale, sum_lx, out=best)
        better = sum_l2 > 0
        keep(kept, trial, better & (sum_lx.square() > kept[0] * sum_l2) if i else better)
    return kept[1]


def positive_search(x: Tensor, w: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Codes 0..levels [size, n] for x ≥ 0 [size, n] and the scale [n], so that x ≈ scale·code under weights `w` (like x).

    Nine inverse scales round levels / max(x), then the sweeps of `improve_codes`.
    """
    peak = x.amax(0)
    zero = peak < GROUP_MAX_EPS
    peak = torch.where(zero, torch.ones_like(peak), peak)
    kept = torch.stack((torch.full_like(peak, torch.inf), divided(levels, peak)))
    trial = torch.empty_like(kept)
    ladder = _ladder(levels, 0.0, 0.1, range(-4, 5))
    for numerator in (ladder[4], *ladder[:4], *ladder[5:]):
        trial[1] = divided(numerator, peak)
        codes = (x * trial[1]).round_().clamp_(max=levels)
        difference = x - codes * divided(1.0, trial[1])
        trial[0] = in_order(difference.mul(w).mul_(difference))
        keep(kept, trial, trial[0] < kept[0])
    codes = (x * kept[1]).round_().clamp_(max=levels)
    scale = ratio(*improve_codes(x, w, codes, 0, levels))
    return codes.masked_fill_(zero, 0.0), scale.masked_fill_(zero, 0.0)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is not positive."""
    return torch.where(b > 0, a / b, torch.zeros_like(b))


def improve_codes(x: Tensor, w: Tensor, codes: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Up to five sweeps that move one code at a time, within low..high, to where the least-squares scale of the others wants
    it, if that lowers the error. `codes` [size, n] change in place; returns Σwxl and Σwl² [n]."""
    wx = w * x
    kept = torch.stack((in_order(wx * codes), in_order(w * codes * codes), codes[0]))
    trial = torch.empty_like(kept)
    for _ in range(5):
        changed = False
        for row, x_row, w_row, wx_row in zip(codes, x, w, wx, strict=True):
            kept[2] = row
            others_lx = kept[0] - wx_row * row
            others_l2 = kept[1] - w_row * row * row
            moved = torch.div(x_row * others_l2, others_lx, out=trial[2]).round_().clamp_(low, high)
            lx = torch.add(others_lx, wx_row * moved, out=trial[0])
            l2 = torch.add(others_l2, w_row * moved * moved, out=trial[1])
            better = (others_lx > 0) & (moved != row) & (lx * lx * kept[1] > kept[0] * kept[0] * l2)
            better &= l2 > 0 if low < 0 else others_l2 > 0
            keep(kept, trial, better)
            row.copy_(kept[2])
            changed = changed or bool(better.any())
        if not changed:
            break
    return kept[0], kept[1]


def in_order(x: Tensor) -> Tensor:
    """The sum over dim 0, first row first."""
    total = x[0].clone()
    for row in x.unbind(0)[1:]:
        total += row
    return total
