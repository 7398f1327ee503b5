"""The inner loops of ggml_search, ggml_best_affine and ggml_best_symmetric as functions without a scratch space, for `compiled`.

Columns are [size, n] here. Each function is what the loop beside its caller does, operation by operation, so that the bits are
the same; tests/quantize holds them to that. Weights `w` come last and may be left out, which means ones.
"""

from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from .compiled import Compiled
from .ggml_codebook import VALUES


def _importance_weights(x: Tensor, importance: Tensor, spread: Tensor) -> Tensor:
    """importance·√(spread·mean(x²) + x²) of columns [size, g, n], the mean being that of a super-block."""
    squares = x * x
    mean = squares.transpose(0, 1).reshape(256, -1).sum(0) / 256
    return (squares + spread * mean).sqrt() * importance


def _affine_step(x: Tensor, w: Tensor, sums: Tensor, kept: Tensor, iscale: Tensor, levels: Tensor, absolute: bool) -> Tensor:
    """One trial of affine_search: `sums` Σw and Σwx [2, n], `kept` [5, n] as there; returns the new `kept`."""
    (sum_w, sum_x), origin = sums, kept[2]
    codes = ((x - origin) * iscale).round().clamp(min=0).minimum(levels)
    wl = w * codes
    sum_l, sum_l2, sum_lx = wl.sum(0), (wl * codes).sum(0), (wl * x).sum(0)
    determinant = sum_l2 * sum_w - sum_l * sum_l
    scale = (sum_lx * sum_w - sum_x * sum_l) / determinant
    minimum = (sum_l2 * sum_x - sum_l * sum_lx) / determinant
    positive = minimum > 0
    scale = torch.where(positive, sum_lx / sum_l2, scale)
    minimum = torch.where(positive, torch.zeros_like(minimum), minimum)
    difference = codes * scale + minimum - x
    error = ((difference.abs() if absolute else difference * difference) * w).sum(0)
    better = (determinant > 0) & (error < kept[0])
    trial = (error, scale, minimum, iscale, origin)
    return torch.stack([torch.where(better, new, old) for new, old in zip(trial, kept, strict=True)])


def _by_square(x: Tensor, w: Tensor, sums: Tensor, kept: Tensor, iscale: Tensor, levels: Tensor) -> Tensor:
    return _affine_step(x, w, sums, kept, iscale, levels, absolute=False)


def _by_magnitude(x: Tensor, w: Tensor, sums: Tensor, kept: Tensor, iscale: Tensor, levels: Tensor) -> Tensor:
    return _affine_step(x, w, sums, kept, iscale, levels, absolute=True)


def _best_ratio(x: Tensor, w: Tensor, wx: Tensor, iscales: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """All trials of symmetric_search: scale and inverse scale [2, n]."""
    kept = [torch.zeros_like(iscales[0]), torch.zeros_like(iscales[0]), iscales[0]]
    for i, iscale in enumerate(iscales):
        codes = (x * iscale).round().maximum(low).minimum(high)
        kept = _better_ratio(kept, i, (wx * codes).sum(0), (w * codes * codes).sum(0), iscale)
    return torch.stack(kept[1:])


def _best_codebook_ratio(x: Tensor, w: Tensor, iscales: Tensor) -> Tensor:
    """All trials of codebook_search: the scale [n]."""
    kept = [torch.zeros_like(iscales[0]), torch.zeros_like(iscales[0]), iscales[0]]
    for i, iscale in enumerate(iscales):
        codes = nearest_values(x * iscale)
        wl = w * codes
        kept = _better_ratio(kept, i, (wl * x).sum(0), (wl * codes).sum(0), iscale)
    return kept[1]


def _better_ratio(kept: list[Tensor], i: int, sum_lx: Tensor, sum_l2: Tensor, iscale: Tensor) -> list[Tensor]:
    scale = sum_lx / sum_l2
    better = sum_l2 > 0
    if i:
        better &= sum_lx * sum_lx > kept[0] * sum_l2
    return [torch.where(better, new, old) for new, old in zip((scale * sum_lx, scale, iscale), kept, strict=True)]


def nearest_values(x: Tensor) -> Tensor:
    """As ggml_codebook's, by comparisons."""
    found = torch.full_like(x, VALUES[0])
    for below, above in pairwise(VALUES):
        found = torch.where(x >= (below + above) / 2, above, found)
    return found


def _total(x: Tensor) -> Tensor:
    """`sum` over dim 0 adds each 16 rows in their order, and then those sums."""
    return reduce(torch.add, [part.sum(0) for part in x.split(16)])


def _affine_sums(shifted: Tensor, iscales: Tensor, levels: Tensor, w: Tensor | None = None) -> Tensor:
    """Σwl, Σwl², Σwlx of each trial: [3, trials, n]."""
    found = []
    for iscale in iscales:
        codes = (shifted * iscale).round().clamp(min=0).minimum(levels)
        wl = codes if w is None else w * codes
        found += [_total(wl), _total(wl * codes), _total(wl * shifted)]
    return torch.stack(found).view(len(iscales), 3, -1).transpose(0, 1).contiguous()


def _affine_errors(shifted: Tensor, scales: Tensor, iscales: Tensor, levels: Tensor, w: Tensor | None = None) -> Tensor:
    """Σw(shifted − scale·code)² of each trial: [trials, n]."""
    found = []
    for scale, iscale in zip(scales, iscales, strict=True):
        codes = (shifted * iscale).round().clamp(min=0).minimum(levels)
        found.append(_weighted_square(shifted - codes * scale, w))
    return torch.stack(found)


def _symmetric_sums(x: Tensor, wx: Tensor, iscales: Tensor, low: Tensor, high: Tensor, w: Tensor | None = None) -> Tensor:
    """Σwl² and Σwlx of each trial: [trials, 2, n]."""
    return _ratio_sums([(x * iscale).round().maximum(low).minimum(high) for iscale in iscales], wx, w)


def _codebook_sums(x: Tensor, wx: Tensor, iscales: Tensor, w: Tensor | None = None) -> Tensor:
    return _ratio_sums([nearest_values(x * iscale) for iscale in iscales], wx, w)


def _ratio_sums(trials: list[Tensor], wx: Tensor, w: Tensor | None) -> Tensor:
    found = []
    for codes in trials:
        wl = codes if w is None else w * codes
        found += [_total(wl * codes), _total(wx * codes)]
    return torch.stack(found).view(len(trials), 2, -1)


def _symmetric_errors(x: Tensor, scales: Tensor, iscales: Tensor, low: Tensor, high: Tensor, w: Tensor | None = None) -> Tensor:
    """Σw(x − scale·code)² of each trial: [trials, n]."""
    trials = [(x * iscale).round().maximum(low).minimum(high) for iscale in iscales]
    return torch.stack([_weighted_square(x - codes * scale, w) for codes, scale in zip(trials, scales, strict=True)])


def _codebook_errors(x: Tensor, scales: Tensor, iscales: Tensor, w: Tensor | None = None) -> Tensor:
    trials = [nearest_values(x * iscale) for iscale in iscales]
    return torch.stack([_weighted_square(x - codes * scale, w) for codes, scale in zip(trials, scales, strict=True)])


def _weighted_square(difference: Tensor, w: Tensor | None) -> Tensor:
    squares = difference * difference
    return _total(squares if w is None else squares * w)


IMPORTANCE_WEIGHTS = Compiled(_importance_weights)
BY_SQUARE, BY_MAGNITUDE = Compiled(_by_square), Compiled(_by_magnitude)
BEST_RATIO, BEST_CODEBOOK_RATIO = Compiled(_best_ratio), Compiled(_best_codebook_ratio)
AFFINE_SUMS, AFFINE_ERRORS = Compiled(_affine_sums), Compiled(_affine_errors)
SYMMETRIC_SUMS, SYMMETRIC_ERRORS = Compiled(_symmetric_sums), Compiled(_symmetric_errors)
CODEBOOK_SUMS, CODEBOOK_ERRORS = Compiled(_codebook_sums), Compiled(_codebook_errors)
