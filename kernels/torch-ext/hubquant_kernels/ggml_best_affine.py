"""A lower error than ggml's in the same bytes, for the types x ≈ d·sc·code − dmin·m (Q4_K, Q5_K).

The objective is Σ w·(x − x̂)² with the importance as weights (ones without it), where ggml mixes in the size of the weight.
Each sub-block is searched over the inverse scale and the lower end of its range. The float16 scales are then chosen by the
quadratic error of rounding the sub-blocks' own scales to them; after that the 6-bit scales and the codes, and the float16
scales, are improved in turn. `x` and `w` are columns as in ggml_search; sub-block g of super-block b is column g·n + b.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .ggml_search import keep

# inverse scales (levels + step) / range, and lower ends low + offset·range/levels of the range
STEPS = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75)
OFFSETS = (0.0, -0.5, -0.25, 0.25, 0.5)
# the float16 scale is sought round the one that gives the largest sub-block scale the largest code
FACTORS = tuple(1 + 0.005 * i for i in range(-16, 17))
TINY = 1e-30


class AffineSums(NamedTuple):
    """Sums over each column: Σwl, Σwl², Σwlx for codes l, all [columns]."""

    l: Tensor  # noqa: E741
    l2: Tensor
    lx: Tensor


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


def rounded16(x: Tensor) -> Tensor:
    """The nearest finite float16, as float32."""
    return x.clamp(-65504.0, 65504.0).to(torch.float16).float()


def total(x: Tensor) -> Tensor:
    return x.sum((0, 1))


class AffineColumns:
    """The columns of some super-blocks and scratch space for them. `w` None means ones."""

    def __init__(self, x: Tensor, w: Tensor | None, levels: int) -> None:
        self.x, self.w, self.levels = x, w, levels
        self.codes, self.scratch, self.shifted = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        self.sum_w = torch.full_like(x[0, 0], x.shape[0] * 16) if w is None else total(w)

    def weighted(self, x: Tensor) -> Tensor:
        return x if self.w is None else torch.mul(self.w, x, out=self.scratch)

    def round(self, shifted: Tensor, iscale: Tensor) -> Tensor:
        return torch.mul(shifted, iscale, out=self.codes).round_().clamp_(0, self.levels)

    def sums(self, codes: Tensor, x: Tensor) -> AffineSums:
        wl = self.weighted(codes)
        return AffineSums(total(wl), total(wl * codes), total(wl * x))

    def error(self, shifted: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        """Σw(shifted − scale·code)² of each column; the codes are spent."""
        difference = torch.addcmul(shifted, codes, scale, value=-1, out=codes)
        return total(self.weighted(difference.square_()))

    def rounded(self, fields: AffineFields) -> Tensor:
        """The codes nearest to x under these fields."""
        torch.add(self.x, fields.minimum, out=self.shifted)
        return self.round(self.shifted, fields.scale.clamp(min=TINY).reciprocal_())


def search(columns: AffineColumns) -> tuple[Tensor, Tensor, AffineSums]:
    """Scale and minimum (x ≈ scale·code − minimum, minimum ≥ 0) of the best least-squares fit over STEPS × OFFSETS, and its sums."""
    x, levels, sum_w = columns.x, columns.levels, columns.sum_w
    low, high = x.amin((0, 1)).clamp_(max=0.0), x.amax((0, 1))
    kept = torch.zeros(5, len(low), device=x.device)
    kept[0] = torch.inf
    trial = torch.empty_like(kept)
    for offset in OFFSETS:
        origin = torch.lerp(low, high, offset / levels).clamp_(max=0.0)
        span = (high - origin).clamp_(min=TINY)
        shifted = torch.sub(x, origin, out=columns.shifted)
        weighted = columns.weighted(shifted)
        sum_x, sum_xx = total(weighted), total(weighted * shifted)
        for step in STEPS:
            codes = columns.round(shifted, (levels + step) / span)
            sums = columns.sums(codes, shifted)
            determinant = torch.maximum(sum_w * sums.l2 - sums.l * sums.l, 1e-6 * sum_w * sums.l2).clamp_(min=TINY)
            start = torch.minimum((sum_x * sums.l2 - sums.l * sums.lx) / determinant, -origin)
            scale = (sums.lx - start * sums.l) / sums.l2.clamp(min=TINY)
            error = sum_xx + scale * (scale * sums.l2 + 2 * (start * sums.l - sums.lx)) + start * (start * sum_w - 2 * sum_x)
            torch.stack((error, scale, -(origin + start), sums.l, sums.l2), out=trial)
            keep(kept, trial, error < kept[0])
    _, scale, minimum, sum_l, sum_l2 = kept
    return scale, minimum, AffineSums(sum_l, sum_l2, sum_l)


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
    scale, minimum, sums = (t.view(-1, n) if isinstance(t, Tensor) else t for t in search(columns))
    sum_w, sum_l, sum_l2 = columns.sum_w.view(-1, n), sums.l.view(-1, n), sums.l2.view(-1, n)
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
            codes = columns.round(shifted, scale.clamp(min=TINY).reciprocal_())
            torch.stack((columns.error(shifted, codes, scale), sc.view(-1), m.view(-1)), out=trial)
            keep(kept, trial, trial[0] < kept[0])
    error, sc, m = kept.view(3, *shape)
    return AffineFields(fields.d, fields.dmin, sc, m), error.sum(0)


def refit(columns: AffineColumns, fields: AffineFields) -> AffineFields:
    """d and dmin by least squares for the fields' codes, the others as they are."""
    n = len(fields.d)
    sums = columns.sums(columns.rounded(fields), columns.x)
    sum_l, sum_l2, sum_lx = (t.view(-1, n) for t in sums)
    sum_w, sum_x = columns.sum_w.view(-1, n), total(columns.weighted(columns.x)).view(-1, n)
    sc, m = fields.sc, fields.m
    aa, ab, bb = (sc * sc * sum_l2).sum(0), (sc * m * sum_l).sum(0), (m * m * sum_w).sum(0)
    ax, bx = (sc * sum_lx).sum(0), (m * sum_x).sum(0)
    determinant = aa * bb - ab * ab
    sound = determinant > 1e-5 * aa * bb
    d = torch.where(sound, rounded16((ax * bb - bx * ab) / determinant), fields.d)
    dmin = torch.where(sound, rounded16((ax * ab - bx * aa) / determinant), fields.dmin)
    return AffineFields(d, dmin.clamp_(min=0.0), sc, m)


def best_affine(columns: AffineColumns, n: int, rounds: int = 2) -> tuple[AffineFields, Tensor]:
    """Fields of n super-blocks and their errors [n]."""
    fields, error = improve_codes(columns, first_fields(columns, n))
    for _ in range(rounds):
        others, other_error = improve_codes(columns, refit(columns, fields))
        better = other_error < error
        fields = AffineFields(*(torch.where(better, new, old) for new, old in zip(others, fields, strict=True)))
        error = torch.minimum(error, other_error)
    return fields, error
