"""A lower error than ggml's in the same bytes, for the types x ≈ d·sc·code − dmin·m (Q4_K, Q5_K) and
x ≈ d·code + m (Q4_1, Q5_1).

The objective is Σ w·(x − x̂)² with the importance as weights (ones without it), where ggml mixes in the size of the weight.
Each sub-block is searched over the inverse scale and the lower end of its range. The float16 scales are then chosen by the
quadratic error of rounding the sub-blocks' own scales to them; after that the 6-bit scales and the codes, and the float16
scales, are improved in turn. `x` and `w` are columns as in ggml_search; sub-block g of super-block b is column g·n + b.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .ggml_columns import rounded16
from .ggml_search import keep

# a column is tried with inverse scales (levels·a + b) / range, where few large codes are wasted on an outlier (b) or not all
# codes are used (a): the wider the choice, the more often rounding happens to fall well
STEPS = tuple((-0.1 * (7 - i) / 7, 1.25 * i / 7) for i in range(8))
# and with the lower end of its range moved by so many steps
OFFSETS = (0.0, -0.9, -0.45, 0.45, 0.9)
# the float16 scale is sought round the one that gives the largest sub-block scale the largest code
FACTORS = tuple(1 + 0.005 * i for i in range(-16, 17))
TINY = 1e-30


class AffineFields(NamedTuple):
    """d and dmin [n], sc and m [g, n], all float32; d and dmin have float16 values, sc and m whole ones."""

    d: Tensor
    dmin: Tensor
    sc: Tensor
    m: Tensor

    @property
    def scale(self) -> Tensor:
        return (self.d * self.sc).reshape(-1)

    @property
    def minimum(self) -> Tensor:
        return (self.dmin * self.m).reshape(-1)


class AffineColumns:
    """The columns of some blocks, as [size, columns], and scratch space for them.

    `w` None means ones. Codes are 0..levels. The minimum of a K type is subtracted and stored without a sign, so their fits
    may not begin above zero unless `signed`.
    """

    def __init__(self, x: Tensor, w: Tensor | None, levels: int, signed: bool = False) -> None:
        self.x, self.w = x.flatten(0, 1), None if w is None else w.flatten(0, 1)
        self.levels, self.signed = levels, signed
        self.codes, self.scratch, self.product, self.shifted = (torch.empty_like(self.x) for _ in range(4))
        self.sum_w = torch.full_like(self.x[0], len(self.x)) if self.w is None else self.w.sum(0)

    def weighted(self, x: Tensor) -> Tensor:
        return x if self.w is None else torch.mul(self.w, x, out=self.scratch)

    def round(self, shifted: Tensor, iscale: Tensor) -> Tensor:
        return torch.mul(shifted, iscale, out=self.codes).round_().clamp_(0, self.levels)

    def sums(self, codes: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """Σwl, Σwl², Σwlx of each column into `out` [3, columns]."""
        wl = self.weighted(codes)
        torch.sum(wl, 0, out=out[0])
        torch.sum(torch.mul(wl, codes, out=self.product), 0, out=out[1])
        torch.sum(torch.mul(wl, x, out=self.product), 0, out=out[2])
        return out

    def error(self, shifted: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        """Σw(shifted − scale·code)² of each column; the codes are spent."""
        difference = torch.addcmul(shifted, codes, scale, value=-1, out=codes)
        return self.weighted(difference.square_()).sum(0)

    def rounded(self, scale: Tensor, minimum: Tensor) -> Tensor:
        """The codes nearest to x under x ≈ scale·code − minimum."""
        torch.add(self.x, minimum, out=self.shifted)
        return self.round(self.shifted, inverse(scale))


def inverse(scale: Tensor) -> Tensor:
    """1/scale for scales ≥ 0; so large for 0 that all codes are at the end, where they do not count."""
    return scale.clamp(min=TINY).reciprocal_()


def search(columns: AffineColumns) -> Tensor:
    """The best least-squares fit of each column over STEPS × OFFSETS, x ≈ scale·code − minimum.

    Rows of the result [5, columns]: the error, scale, minimum, Σwl and Σwl².
    """
    low, high, levels = columns.x.amin(0), columns.x.amax(0), columns.levels
    highest = torch.full_like(low, torch.inf) if columns.signed else torch.zeros_like(low)
    low = torch.minimum(low, highest)
    best = torch.full((5, len(low)), torch.inf, device=low.device)
    sums = torch.empty(len(STEPS), 3, len(low), device=low.device)
    for offset in OFFSETS:
        origin = torch.minimum(torch.lerp(low, high, offset / levels), highest)
        span = (high - origin).clamp_(min=TINY)
        shifted = torch.sub(columns.x, origin, out=columns.shifted)
        for (part, step), out in zip(STEPS, sums, strict=True):
            columns.sums(columns.round(shifted, (levels * (1 + part) + step) / span), shifted, out)
        fits = _least_squares(columns, shifted, origin, highest - origin, sums)
        chosen = fits[0].min(0).indices.view(1, 1, -1).expand(5, 1, -1)
        trial = fits.gather(1, chosen).squeeze(1)
        keep(best, trial, trial[0] < best[0])
    return best


def _least_squares(columns: AffineColumns, shifted: Tensor, origin: Tensor, highest: Tensor, sums: Tensor) -> Tensor:
    """The rows of `search` for trials with these sums [trials, 3, columns]: [5, trials, columns].

    shifted ≈ scale·code + start, start ≤ highest.
    """
    sum_l, sum_l2, sum_lx = sums.unbind(1)
    sum_w, weighted = columns.sum_w, columns.weighted(shifted)
    sum_x, sum_xx = weighted.sum(0), torch.mul(weighted, shifted, out=columns.product).sum(0)
    determinant = torch.maximum(sum_w * sum_l2 - sum_l * sum_l, 1e-6 * sum_w * sum_l2).clamp_(min=TINY)
    start = torch.minimum((sum_x * sum_l2 - sum_l * sum_lx).div_(determinant), highest)
    scale = (sum_lx - start * sum_l).div_(sum_l2.clamp(min=TINY))
    cross = (start * sum_l - sum_lx).mul_(2)
    error = (scale * sum_l2).add_(cross).mul_(scale).add_(sum_xx).add_(start * (start * sum_w - 2 * sum_x))
    return torch.stack((error, scale, -(origin + start), sum_l, sum_l2))


def choose_scale(target: Tensor, curvature: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """d [n] and codes 0..levels [g, n] with the least Σ curvature·(d·code − target)² over FACTORS, for targets ≥ 0 [g, n]."""
    factors = torch.tensor(FACTORS, device=target.device).view(-1, 1)
    d = rounded16(target.amax(0) / levels * factors)[:, None]
    codes = (target / d.clamp(min=TINY)).round_().clamp_(0, levels)
    best = (d * codes - target).square_().mul_(curvature).sum(1).min(0).indices
    chosen = best.view(1, 1, -1)
    return d.gather(0, chosen).view(-1), codes.gather(0, chosen.expand(1, *target.shape)).squeeze(0)


def first_fields(columns: AffineColumns, n: int) -> AffineFields:
    """The sub-blocks' own best fits, rounded to fields; the minimum makes up for what rounding did to the scale."""
    _, scale, minimum, sum_l, sum_l2 = search(columns).view(5, -1, n)
    sum_w = columns.sum_w.view(-1, n)
    per_weight = sum_l / sum_w
    d, sc = choose_scale(scale.clamp(min=0.0), sum_l2 - sum_l * per_weight, 63)
    dmin, m = choose_scale((minimum + (d * sc - scale) * per_weight).clamp_(min=0.0), sum_w, 63)
    return AffineFields(d, dmin, sc, m)


def improve_codes(columns: AffineColumns, fields: AffineFields) -> tuple[AffineFields, Tensor]:
    """For each sub-block the best of the nine neighbours (sc ± 1, m ± 1) with new codes each; and the errors [n]."""
    shape = fields.sc.shape
    kept = torch.full((3, shape.numel()), torch.inf, device=fields.d.device)
    trial = torch.empty_like(kept)
    for up in (0, -1, 1):
        m = (fields.m + up).clamp_(0, 63)
        shifted = torch.add(columns.x, (fields.dmin * m).view(-1), out=columns.shifted)
        for step in (0, -1, 1):
            sc = (fields.sc + step).clamp_(0, 63)
            scale = (fields.d * sc).view(-1)
            codes = columns.round(shifted, inverse(scale))
            torch.stack((columns.error(shifted, codes, scale), sc.view(-1), m.view(-1)), out=trial)
            keep(kept, trial, trial[0] < kept[0])
    error, sc, m = kept.view(3, *shape)
    return AffineFields(fields.d, fields.dmin, sc, m), error.sum(0)


def refit(columns: AffineColumns, fields: AffineFields) -> AffineFields:
    """d and dmin by least squares for the fields' codes, the others as they are."""
    n = len(fields.d)
    sums = torch.empty(3, columns.x.shape[1], device=columns.x.device)
    sum_l, sum_l2, sum_lx = columns.sums(columns.rounded(fields.scale, fields.minimum), columns.x, sums).view(3, -1, n)
    sum_w, sum_x = columns.sum_w.view(-1, n), columns.weighted(columns.x).sum(0).view(-1, n)
    sc, m = fields.sc, fields.m
    aa, ab, bb = (sc * sc * sum_l2).sum(0), (sc * m * sum_l).sum(0), (m * m * sum_w).sum(0)
    ax, bx = (sc * sum_lx).sum(0), (m * sum_x).sum(0)
    determinant = aa * bb - ab * ab
    sound = determinant > 1e-5 * aa * bb
    d = torch.where(sound, rounded16((ax * bb - bx * ab) / determinant), fields.d)
    dmin = torch.where(sound, rounded16((ax * ab - bx * aa) / determinant), fields.dmin)
    return AffineFields(d.clamp_(min=0.0), dmin if columns.signed else dmin.clamp_(min=0.0), sc, m)


def best_two_level(columns: AffineColumns, n: int, rounds: int = 2) -> tuple[AffineFields, Tensor]:
    """Fields of n super-blocks and their errors [n]."""
    fields, error = improve_codes(columns, first_fields(columns, n))
    for _ in range(rounds):
        others, other_error = improve_codes(columns, refit(columns, fields))
        better = other_error < error
        fields = AffineFields(*(torch.where(better, new, old) for new, old in zip(others, fields, strict=True)))
        error = torch.minimum(error, other_error)
    return fields, error


def best_one_level(columns: AffineColumns, rounds: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and minimum with float16 values, and the error, all [n], of blocks without sub-blocks."""
    _, scale, minimum, _, _ = search(columns)
    fields = AffineFields(rounded16(scale).clamp_(min=0.0), rounded16(minimum), *torch.ones(2, 1, len(scale), device=scale.device))
    error = _one_level_error(columns, fields)
    for _ in range(rounds):
        others = refit(columns, fields)
        other_error = _one_level_error(columns, others)
        better = other_error < error
        fields = AffineFields(*(torch.where(better, new, old) for new, old in zip(others, fields, strict=True)))
        error = torch.minimum(error, other_error)
    return fields.d, fields.dmin, error


def _one_level_error(columns: AffineColumns, fields: AffineFields) -> Tensor:
    codes = columns.rounded(fields.d, fields.dmin)
    return columns.error(columns.shifted, codes, fields.d)
