"""A lower error than ggml's in the same bytes, for the types x ≈ d·sc·code − dmin·m (Q2_K, Q4_K, Q5_K) and
x ≈ d·code + m (Q4_1, Q5_1).

The objective is Σ w·(x − x̂)² with the importance as weights (ones without it), where ggml mixes in the size of the weight.
Each sub-block is searched over the inverse scale and the lower end of its range. The float16 scales are then chosen by the
quadratic error of rounding the sub-blocks' own scales to them; after that the sub-blocks' scales and codes, and the float16
scales, are improved in turn. `x` and `w` are columns as in ggml_search; sub-block g of super-block b is column g·n + b.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .ggml_columns import Blocks, rounded16, rows
from .ggml_columns import columns as as_columns
from .ggml_search import keep

# the lower end of the range of a column is moved by so many steps
OFFSETS = (0.0, -0.9, -0.45, 0.45, 0.9)
TINY = 1e-30


class AffineKind(NamedTuple):
    """Codes 0..levels, sub-block scales and minima 0..top (1 where there are none). The minimum of a K type is subtracted and
    stored without a sign, so that their fits may not begin above zero unless `signed`."""

    levels: int
    top: int = 1
    signed: bool = False

    def steps(self) -> list[float]:
        """The codes that the upper end of the range gets in each trial: from leaving some unused to clipping the largest
        weights. The wider the choice, the more often rounding happens to fall well."""
        low, high = self.levels - 0.9 - 0.07 * self.levels, self.levels + 1.25
        return [low + (high - low) * i / 5 for i in range(6)]

    def factors(self) -> list[float]:
        """Factors on the float16 scale that gives the largest sub-block scale the largest code."""
        return [1 + 0.315 / self.top * i for i in range(-16, 17)]


class AffineBytes(NamedTuple):
    """What is stored of super-blocks x ≈ d·sc·code − dmin·m: float16 [n, 1] twice, uint8 [n, g] twice, uint8 [n, 256]."""

    d: Tensor
    dmin: Tensor
    sc: Tensor
    m: Tensor
    codes: Tensor


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
    """The columns of some blocks, as [size, columns], and scratch space for them. `w` None means ones."""

    def __init__(self, x: Tensor, w: Tensor | None, kind: AffineKind) -> None:
        self.x, self.w, self.kind = x.flatten(0, 1), None if w is None else w.flatten(0, 1), kind
        self.codes, self.scratch, self.product, self.shifted = (torch.empty_like(self.x) for _ in range(4))
        self.sum_w = torch.full_like(self.x[0], len(self.x)) if self.w is None else self.w.sum(0)

    def weighted(self, x: Tensor) -> Tensor:
        return x if self.w is None else torch.mul(self.w, x, out=self.scratch)

    def round(self, shifted: Tensor, iscale: Tensor) -> Tensor:
        return torch.mul(shifted, iscale, out=self.codes).round_().clamp_(0, self.kind.levels)

    def sums(self, codes: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """Σwl, Σwl², Σwlx of each column into `out` [3, columns]."""
        wl = self.weighted(codes)
        torch.sum(wl, 0, out=out[0])
        torch.sum(torch.mul(wl, codes, out=self.product), 0, out=out[1])
        torch.sum(torch.mul(wl, x, out=self.product), 0, out=out[2])
        return out

    def error(self, shifted: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        """Σw(shifted − scale·code)² of each column; the codes are spent."""
        difference = torch.sub(shifted, codes.mul_(scale), out=codes)
        return self.weighted(difference.square_()).sum(0)

    def trial_sums(self, shifted: Tensor, iscales: Tensor) -> Tensor:
        """Σwl, Σwl², Σwlx under each of the inverse scales [trials, columns]: [3, trials, columns]."""
        sums = iscales.new_empty(3, *iscales.shape)
        for i, iscale in enumerate(iscales):
            self.sums(self.round(shifted, iscale), shifted, sums[:, i])
        return sums

    def trial_errors(self, shifted: Tensor, scales: Tensor) -> Tensor:
        """Σw(shifted − scale·code)² with the best codes under each of the scales [trials, columns]: [trials, columns]."""
        trials = zip(scales, inverse(scales), strict=True)
        return torch.stack([self.error(shifted, self.round(shifted, i), s) for s, i in trials])

    def rounded(self, scale: Tensor, minimum: Tensor) -> Tensor:
        """The codes nearest to x under x ≈ scale·code − minimum."""
        torch.add(self.x, minimum, out=self.shifted)
        return self.round(self.shifted, inverse(scale))


def inverse(scale: Tensor) -> Tensor:
    """1/scale for scales ≥ 0; so large for 0 that all codes are at the end, where they do not count."""
    return scale.clamp(min=TINY).reciprocal_()


def search(columns: AffineColumns) -> Tensor:
    """The best least-squares fit of each column over its kind's steps × OFFSETS, x ≈ scale·code − minimum.

    Rows of the result [5, columns]: the error, scale, minimum, Σwl and Σwl².
    """
    low, high, steps = columns.x.amin(0), columns.x.amax(0), columns.kind.steps()
    highest = torch.full_like(low, torch.inf) if columns.kind.signed else torch.zeros_like(low)
    low = torch.minimum(low, highest)
    best = torch.full((5, len(low)), torch.inf, device=low.device)
    trial = torch.empty_like(best)
    for offset in OFFSETS:
        origin = torch.minimum(torch.lerp(low, high, offset / columns.kind.levels), highest)
        per_step = (high - origin).clamp_(min=TINY).reciprocal_()
        shifted = torch.sub(columns.x, origin, out=columns.shifted)
        sums = columns.trial_sums(shifted, torch.stack([step * per_step for step in steps]))
        weighted = columns.weighted(shifted)
        sum_x, sum_xx = weighted.sum(0), torch.mul(weighted, shifted, out=columns.product).sum(0)
        fits = _least_squares(columns.sum_w, sum_x, sum_xx, highest - origin, sums)
        _, chosen = fits[0].min(0, keepdim=True)
        torch.gather(fits, 1, chosen.expand(3, 1, -1), out=trial[:3, None])
        torch.gather(sums[:2], 1, chosen.expand(2, 1, -1), out=trial[3:, None])
        torch.add(trial[2], origin, out=trial[2]).neg_()
        keep(best, trial, trial[0] < best[0])
    return best


def _least_squares(sum_w: Tensor, sum_x: Tensor, sum_xx: Tensor, highest: Tensor, sums: Tensor) -> Tensor:
    """Error, scale and start of x ≈ scale·code + start, start ≤ highest, for trials with these sums [3, trials, columns]."""
    sum_l, sum_l2, sum_lx = sums
    fits = torch.empty_like(sums)
    error, scale, start = fits
    torch.mul(sum_l2, sum_w, out=scale)
    determinant = torch.addcmul(scale, sum_l, sum_l, value=-1, out=error)
    torch.maximum(determinant, scale.mul_(1e-6), out=determinant).clamp_(min=TINY)
    torch.mul(sum_l2, sum_x, out=start).addcmul_(sum_l, sum_lx, value=-1).div_(determinant)
    torch.minimum(start, highest, out=start)
    torch.addcmul(sum_lx, start, sum_l, value=-1, out=scale).div_(sum_l2.clamp(min=TINY))
    # Σw(x − scale·l − start)², of which the terms in scale add up to −scale·(2(Σwlx − start·Σwl) − scale·Σwl²)
    torch.mul(start, sum_w, out=error).sub_(sum_x, alpha=2).mul_(start).add_(sum_xx)
    error.addcmul_(scale * scale, sum_l2).addcmul_(scale, torch.addcmul(sum_lx, start, sum_l, value=-1), value=-2)
    return fits


def choose_scale(target: Tensor, curvature: Tensor, kind: AffineKind) -> tuple[Tensor, Tensor]:
    """d [n] and codes 0..top [g, n] with the least Σ curvature·(d·code − target)² over the factors, for targets ≥ 0 [g, n]."""
    factors = torch.tensor(kind.factors(), device=target.device).view(-1, 1)
    d = rounded16(target.amax(0) / kind.top * factors)[:, None]
    codes = (target / d.clamp(min=TINY)).round_().clamp_(0, kind.top)
    best = (d * codes - target).square_().mul_(curvature).sum(1).min(0).indices
    chosen = best.view(1, 1, -1)
    return d.gather(0, chosen).view(-1), codes.gather(0, chosen.expand(1, *target.shape)).squeeze(0)


def first_fields(columns: AffineColumns, n: int) -> AffineFields:
    """The sub-blocks' own best fits, rounded to fields; the minimum makes up for what rounding did to the scale."""
    _, scale, minimum, sum_l, sum_l2 = search(columns).view(5, -1, n)
    sum_w = columns.sum_w.view(-1, n)
    per_weight = sum_l / sum_w
    d, sc = choose_scale(scale.clamp(min=0.0), sum_l2 - sum_l * per_weight, columns.kind)
    dmin, m = choose_scale((minimum + (d * sc - scale) * per_weight).clamp_(min=0.0), sum_w, columns.kind)
    return AffineFields(d, dmin, sc, m)


def improve_codes(columns: AffineColumns, fields: AffineFields) -> tuple[AffineFields, Tensor]:
    """For each sub-block the best of the nine neighbours (sc ± 1, m ± 1) with new codes each; and the errors [n]."""
    shape = fields.sc.shape
    kept = torch.full((3, shape.numel()), torch.inf, device=fields.d.device)
    trial = torch.empty_like(kept)
    for up in (0, -1, 1):
        m = (fields.m + up).clamp_(0, columns.kind.top)
        shifted = torch.add(columns.x, (fields.dmin * m).view(-1), out=columns.shifted)
        stepped = torch.stack([(fields.sc + step).clamp_(0, columns.kind.top) for step in (0, -1, 1)])
        errors = columns.trial_errors(shifted, (fields.d * stepped).view(3, -1))
        for error, sc in zip(errors, stepped, strict=True):
            torch.stack((error, sc.view(-1), m.view(-1)), out=trial)
            keep(kept, trial, trial[0] < kept[0])
    best_error, sc, m = kept.view(3, *shape)
    return AffineFields(fields.d, fields.dmin, sc, m), best_error.sum(0)


def refit(columns: AffineColumns, fields: AffineFields) -> AffineFields:
    """d and dmin by least squares for the fields' codes, d alone where they cannot be told apart."""
    n = len(fields.d)
    sums = torch.empty(3, columns.x.shape[1], device=columns.x.device)
    sum_l, sum_l2, sum_lx = columns.sums(columns.rounded(fields.scale, fields.minimum), columns.x, sums).view(3, -1, n)
    sum_w, sum_x = columns.sum_w.view(-1, n), columns.weighted(columns.x).sum(0).view(-1, n)
    sc, m = fields.sc, fields.m
    aa, ab, bb = (sc * sc * sum_l2).sum(0), (sc * m * sum_l).sum(0), (m * m * sum_w).sum(0)
    ax, bx = (sc * sum_lx).sum(0), (m * sum_x).sum(0)
    determinant = aa * bb - ab * ab
    sound = determinant > 1e-5 * aa * bb
    alone = (ax + fields.dmin * ab) / aa.clamp(min=TINY)
    d = rounded16(torch.where(sound, (ax * bb - bx * ab) / determinant, alone))
    dmin = torch.where(sound, rounded16((ax * ab - bx * aa) / determinant), fields.dmin)
    return AffineFields(d.clamp_(min=0.0), dmin if columns.kind.signed else dmin.clamp_(min=0.0), sc, m)


def best_two_level(columns: AffineColumns, n: int, rounds: int = 1) -> tuple[AffineFields, Tensor]:
    """Fields of n super-blocks and their errors [n]."""
    fields, error = improve_codes(columns, first_fields(columns, n))
    for _ in range(rounds):
        others, other_error = improve_codes(columns, refit(columns, fields))
        better = other_error < error
        fields = AffineFields(*(torch.where(better, new, old) for new, old in zip(others, fields, strict=True)))
        error = torch.minimum(error, other_error)
    return fields, error


def best_one_level(columns: AffineColumns, rounds: int = 1) -> tuple[Tensor, Tensor, Tensor]:
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


def improve_two_level(blocks: Blocks, kind: AffineKind, size: int, given: AffineBytes) -> None:
    """Replaces, in place, what is stored of super-blocks where better is found."""
    start = 0
    for part in blocks.parts():
        n, w = len(part.x), part.weights()
        d, dmin, sc, m, codes = (t[start : start + n] for t in given)
        x = AffineColumns(as_columns(part.x, size), None if w is None else as_columns(w, size), kind)
        old = AffineFields(d.float().view(-1), dmin.float().view(-1), sc.T.float(), m.T.float())
        old_codes = as_columns(codes, size).flatten(0, 1).float()
        error = x.error(x.x + old.minimum, old_codes, old.scale).view(-1, n).sum(0)
        new, new_error = best_two_level(x, n)
        better = (new_error < error).nonzero().squeeze(1)
        d[better, 0], dmin[better, 0] = new.d[better].half(), new.dmin[better].half()
        sc[better], m[better] = new.sc.T[better].to(torch.uint8), new.m.T[better].to(torch.uint8)
        codes[better] = rows(x.rounded(new.scale, new.minimum).view(size // 16, 16, -1), n)[better]
        start += n


def improve_one_level(blocks: Blocks, kind: AffineKind, d: Tensor, m: Tensor, codes: Tensor) -> None:
    """Replaces, in place, what is stored of blocks of 32, x ≈ d·code + m, where better is found."""
    start = 0
    for part in blocks.parts():
        n, w = len(part.x), part.weights()
        place = slice(start, start + n)
        x = AffineColumns(as_columns(part.x, 32), None if w is None else as_columns(w, 32), kind)
        old_codes = as_columns(codes[place], 32).flatten(0, 1).float()
        error = x.error(x.x - m[place].float().view(-1), old_codes, d[place].float().view(-1))
        scale, minimum, new_error = best_one_level(x)
        better = (new_error < error).nonzero().squeeze(1)
        d[place][better, 0], m[place][better, 0] = scale[better].half(), -minimum[better].half()
        codes[place][better] = rows(x.rounded(scale, minimum).view(2, 16, -1), n)[better]
        start += n
