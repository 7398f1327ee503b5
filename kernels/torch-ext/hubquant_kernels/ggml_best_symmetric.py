"""A lower error than ggml's in the same bytes, for the types x ≈ d·sc·code (Q3_K, Q6_K, IQ4_XS) and
x ≈ d·code (Q4_0, Q5_0, Q8_0, IQ4_NL, TQ1_0, TQ2_0).

The objective and the way are those of ggml_best_affine, without a minimum. `x` and `w` are columns as in ggml_search;
sub-block g of super-block b is column g·n + b.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .ggml_codebook import codebook, nearest_places, nearest_values
from .ggml_columns import Blocks, rounded16, rows
from .ggml_columns import columns as as_columns
from .ggml_search import keep, signed_peak

TINY = 1e-30


class SymmetricKind(NamedTuple):
    """Codes low..high, sub-block scales sc_low..sc_high (0, 0 where d is all there is), and the inverse scales to try: those
    that take the peak of a column to each of `peaks`. With `codebook` the codes are its values, low..high its ends."""

    low: int
    high: int
    sc_low: int
    sc_high: int
    peaks: tuple[float, ...]
    codebook: bool = False

    def columns(self, x: Tensor, w: Tensor | None) -> "SymmetricColumns":
        return (CodebookColumns if self.codebook else SymmetricColumns)(x, w, self)

    def factors(self) -> list[float]:
        """Factors on the float16 scale that gives the largest sub-block scale the largest code; none without sub-blocks."""
        return [1 + 1.28 / self.sc_high * i for i in range(-6, 7)] if self.sc_high else []


def peaks(low: int, high: int, inside: float, beyond: float, count: int) -> tuple[float, ...]:
    """`count` codes for the peak on each side, from `inside` short of the last code to `beyond` it, where it is clipped."""
    steps = [beyond - (inside + beyond) * i / (count - 1) for i in range(count)]
    return (*(low - step for step in steps), *(high + step for step in steps))


class SymmetricColumns:
    """The columns of some blocks, as [size, columns], and scratch space for them. `w` None means ones."""

    def __init__(self, x: Tensor, w: Tensor | None, kind: SymmetricKind) -> None:
        self.x, self.w, self.kind = x.flatten(0, 1), None if w is None else w.flatten(0, 1), kind
        self.codes, self.scratch, self.product = (torch.empty_like(self.x) for _ in range(3))
        self.weighted_x = self.x if self.w is None else self.w * self.x
        self.sum_xx = (self.weighted_x * self.x).sum(0)

    def round(self, iscale: Tensor) -> Tensor:
        return torch.mul(self.x, iscale, out=self.codes).round_().clamp_(self.kind.low, self.kind.high)

    def rounded(self, scale: Tensor) -> Tensor:
        """The codes nearest to x under scales [g, n]."""
        return self.round(inverse(scale.reshape(-1)))

    def sums(self, codes: Tensor, out: Tensor) -> None:
        """Σwl² and Σwlx of each column into `out` [2, columns]."""
        wl = codes if self.w is None else torch.mul(self.w, codes, out=self.scratch)
        torch.sum(torch.mul(wl, codes, out=self.product), 0, out=out[0])
        torch.sum(torch.mul(self.weighted_x, codes, out=self.product), 0, out=out[1])

    def error(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Σw(x − scale·code)² of each column; the codes are spent."""
        squares = torch.sub(self.x, codes.mul_(scale), out=codes).square_()
        return (squares if self.w is None else squares.mul_(self.w)).sum(0)

    def trial_sums(self, iscales: Tensor) -> Tensor:
        """Σwl² and Σwlx under each of the inverse scales [trials, columns]: [trials, 2, columns]."""
        sums = iscales.new_empty(len(iscales), 2, iscales.shape[1])
        for iscale, out in zip(iscales, sums, strict=True):
            self.sums(self.round(iscale), out)
        return sums

    def trial_errors(self, scales: Tensor) -> Tensor:
        """Σw(x − scale·code)² with the best codes under each of the scales [trials, columns]: [trials, columns]."""
        return torch.stack([self.error(self.round(i), s) for s, i in zip(scales, inverse(scales), strict=True)])

    def held(self, codes: Tensor) -> Tensor:
        """The codes that bytes [size, columns] stand for."""
        return codes.float().add_(self.kind.low)

    def stored(self, scale: Tensor) -> Tensor:
        """The bytes of the codes nearest to x under scales [g, n]."""
        return self.rounded(scale).sub_(self.kind.low)


class CodebookColumns(SymmetricColumns):
    """The same for codes that are the values of ggml_codebook; their bytes are places in it."""

    def round(self, iscale: Tensor) -> Tensor:
        return self.codes.copy_(nearest_values(torch.mul(self.x, iscale, out=self.codes)))

    def held(self, codes: Tensor) -> Tensor:
        return codebook(codes.device)[codes.long()]

    def stored(self, scale: Tensor) -> Tensor:
        return nearest_places(self.x * inverse(scale.reshape(-1)))


def inverse(x: Tensor) -> Tensor:
    """1/x, and 0 where that could overflow."""
    return torch.where(x.abs() < 1e-37, torch.zeros_like(x), x.reciprocal())


def search(columns: SymmetricColumns) -> tuple[Tensor, Tensor]:
    """The scale with the best least-squares fit of each column over the trials, and Σwl² under it."""
    peak = inverse(signed_peak(columns.x))
    sum_l2, sum_lx = columns.trial_sums(torch.stack([code * peak for code in columns.kind.peaks])).unbind(1)
    scale = sum_lx / sum_l2.clamp(min=TINY)
    best = (scale * sum_lx).max(0).indices[None]
    return scale.gather(0, best).squeeze(0), sum_l2.gather(0, best).squeeze(0)


def choose_scale(target: Tensor, curvature: Tensor, kind: SymmetricKind) -> tuple[Tensor, Tensor]:
    """d [n] and sub-block scales [g, n] with the least Σ curvature·(d·sc − target)² over the factors, for both signs of d."""
    factors = torch.tensor(kind.factors(), device=target.device)
    ends = torch.cat((factors / kind.sc_low, factors / kind.sc_high)).view(-1, 1)
    d = rounded16(signed_peak(target) * ends)[:, None]
    sc = (target * inverse(d)).round_().clamp_(kind.sc_low, kind.sc_high)
    best = (d * sc - target).square_().mul_(curvature).sum(1).min(0).indices.view(1, 1, -1)
    return d.gather(0, best).view(-1), sc.gather(0, best.expand(1, *target.shape)).squeeze(0)


def improve_codes(columns: SymmetricColumns, d: Tensor, sc: Tensor) -> tuple[Tensor, Tensor]:
    """For each sub-block the best of sc, sc ± 1, sc ± 2 with new codes each; and the errors [n]."""
    kept = torch.full((2, sc.numel()), torch.inf, device=d.device)
    trial = torch.empty_like(kept)
    stepped = torch.stack([(sc + step).clamp_(columns.kind.sc_low, columns.kind.sc_high) for step in (0, -1, 1, -2, 2)])
    for error, tried in zip(columns.trial_errors((d * stepped).view(5, -1)), stepped, strict=True):
        torch.stack((error, tried.view(-1)), out=trial)
        keep(kept, trial, trial[0] < kept[0])
    best_error, best = kept.view(2, *sc.shape)
    return best, best_error.sum(0)


def refit(columns: SymmetricColumns, d: Tensor, sc: Tensor) -> Tensor:
    """d by least squares for the codes under d·sc."""
    sums = torch.empty(2, columns.x.shape[1], device=d.device)
    columns.sums(columns.rounded(d * sc), sums)
    sum_l2, sum_lx = sums.view(2, *sc.shape)
    return rounded16((sc * sum_lx).sum(0) / (sc * sc * sum_l2).sum(0).clamp(min=TINY))


def best_two_level(columns: SymmetricColumns, n: int, rounds: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """d [n], sub-block scales [g, n] and errors [n] of n super-blocks."""
    scale, curvature = (t.view(-1, n) for t in search(columns))
    d, sc = choose_scale(scale, curvature, columns.kind)
    sc, error = improve_codes(columns, d, sc)
    for _ in range(rounds):
        other_d = refit(columns, d, sc)
        other_sc, other_error = improve_codes(columns, other_d, sc)
        better = other_error < error
        d, sc = torch.where(better, other_d, d), torch.where(better, other_sc, sc)
        error = torch.minimum(error, other_error)
    return d, sc, error


def best_one_level(columns: SymmetricColumns, rounds: int = 1) -> tuple[Tensor, Tensor]:
    """d [n] and errors [n] of blocks without sub-blocks."""
    d = rounded16(search(columns)[0])
    error = columns.error(columns.rounded(d), d)
    for _ in range(rounds):
        other = refit(columns, d, torch.ones_like(d)[None])
        other_error = columns.error(columns.rounded(other), other)
        d = torch.where(other_error < error, other, d)
        error = torch.minimum(error, other_error)
    return d, error


def improve_two_level(blocks: Blocks, kind: SymmetricKind, size: int, d: Tensor, sc: Tensor, codes: Tensor) -> None:
    """Replaces, in place, what is stored of super-blocks (float16 [n, 1], int8 [n, g], uint8 [n, 256]) where better is found."""
    start = 0
    for part in blocks.parts():
        n, w = len(part.x), part.weights()
        place = slice(start, start + n)
        x = kind.columns(as_columns(part.x, size), None if w is None else as_columns(w, size))
        scale = (sc[place].T.float() * d[place].float().view(-1)).reshape(-1)
        error = x.error(x.held(as_columns(codes[place], size).flatten(0, 1)), scale).view(-1, n).sum(0)
        new_d, new_sc, new_error = best_two_level(x, n)
        better = (new_error < error).nonzero().squeeze(1)
        d[place][better, 0] = new_d[better].half()
        sc[place][better] = new_sc.T[better].to(torch.int8)
        codes[place][better] = rows(x.stored(new_d * new_sc).view(size // 16, 16, -1), n)[better]
        start += n


def improve_one_level(blocks: Blocks, kind: SymmetricKind, d: Tensor, codes: Tensor) -> None:
    """Replaces, in place, what is stored of blocks (float16 [n, 1], uint8 [n, size]) where better is found."""
    start, size = 0, blocks.x.shape[1]
    for part in blocks.parts():
        n, w = len(part.x), part.weights()
        place = slice(start, start + n)
        x = kind.columns(as_columns(part.x, size), None if w is None else as_columns(w, size))
        error = x.error(x.held(as_columns(codes[place], size).flatten(0, 1)), d[place].float().view(-1))
        new_d, new_error = best_one_level(x)
        better = (new_error < error).nonzero().squeeze(1)
        d[place][better, 0] = new_d[better].half()
        codes[place][better] = rows(x.stored(new_d).view(size // 16, 16, -1), n)[better]
        start += n
