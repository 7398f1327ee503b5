"""The search of ../ggml_best_affine.py, x ≈ scale·code − minimum, on tiles of ggml_columns. `w` 1.0 means no weights.

Names, trials and their order are the definition's, but that sums run in another order; fields are [S, G], S super-blocks.
"""

import triton
import triton.language as tl

from .ggml_columns import TINY, clip, each, highest, lowest, rint, rounded16, total


@triton.jit
def rounded(shifted, scale, LEVELS: tl.constexpr):
    """The codes nearest to shifted ≈ scale·code, scale ≥ 0."""
    return clip(rint(shifted * each(1.0 / tl.maximum(scale, TINY))), 0.0, LEVELS)


@triton.jit
def search(x, w, sum_w, LEVELS: tl.constexpr, SIGNED: tl.constexpr):
    """The best fit over offsets of the range's lower end and inverse scales: scale, minimum, Σwl and Σwl² [N]."""
    FIRST: tl.constexpr = LEVELS - 0.9 - 0.07 * LEVELS
    STEP: tl.constexpr = (LEVELS + 1.25 - FIRST) / 5
    low, high = lowest(x), highest(x)
    if not SIGNED:
        low = tl.minimum(low, 0.0)
    error = tl.full(low.shape, float("inf"), tl.float32)
    scale, minimum, sum_l, sum_l2 = tl.zeros_like(low), tl.zeros_like(low), tl.zeros_like(low), tl.zeros_like(low)
    for offset in range(-2, 3):
        origin = low + (high - low) * (offset * (0.45 / LEVELS))
        if not SIGNED:
            origin = tl.minimum(origin, 0.0)
        per_step = 1.0 / tl.maximum(high - origin, TINY)
        shifted = x - each(origin)
        sum_x, sum_xx = total(w * shifted), total(w * shifted * shifted)
        for i in range(6):
            codes = clip(rint(shifted * each((FIRST + STEP * i) * per_step)), 0.0, LEVELS)
            weighted = w * codes
            l, l2, lx = total(weighted), total(weighted * codes), total(weighted * shifted)  # noqa: E741
            determinant = tl.maximum(tl.maximum(l2 * sum_w - l * l, 1e-6 * l2 * sum_w), TINY)
            start = (l2 * sum_x - l * lx) / determinant
            if not SIGNED:
                start = tl.minimum(start, -origin)
            rest = lx - start * l
            fit = rest / tl.maximum(l2, TINY)
            fit_error = (start * sum_w - 2.0 * sum_x) * start + sum_xx + fit * (fit * l2 - 2.0 * rest)
            better = fit_error < error
            error, scale = tl.where(better, fit_error, error), tl.where(better, fit, scale)
            minimum = tl.where(better, -(start + origin), minimum)
            sum_l, sum_l2 = tl.where(better, l, sum_l), tl.where(better, l2, sum_l2)
    return scale, minimum, sum_l, sum_l2


@triton.jit
def choose_scale(target, curvature, TOP: tl.constexpr):
    """d [S, 1] and codes 0..TOP [S, G] with the least Σ curvature·(d·code − target)² over 33 factors, for targets ≥ 0."""
    largest = tl.max(target, axis=1, keep_dims=True) / TOP
    error, d = tl.full(largest.shape, float("inf"), tl.float32), tl.zeros_like(largest)
    codes = tl.zeros_like(target)
    for i in range(-16, 17):
        trial = rounded16(largest * (1.0 + (0.315 / TOP) * i))
        trial_codes = clip(rint(target * (1.0 / tl.maximum(trial, TINY))), 0.0, TOP)
        difference = trial * trial_codes - target
        trial_error = tl.sum(difference * difference * curvature, axis=1, keep_dims=True)
        better = trial_error < error
        error, d, codes = tl.where(better, trial_error, error), tl.where(better, trial, d), tl.where(better, trial_codes, codes)
    return d, codes


@triton.jit
def improve_codes(x, w, d, dmin, sc, m, LEVELS: tl.constexpr, TOP: tl.constexpr):
    """For each sub-block the best of the nine neighbours (sc ± 1, m ± 1) with new codes each; and the errors [S, 1]."""
    N: tl.constexpr = x.shape[1]
    S: tl.constexpr = sc.shape[0]
    error = tl.full([N], float("inf"), tl.float32)
    best_sc, best_m = tl.reshape(sc, [N]), tl.reshape(m, [N])
    for up in range(3):
        near_m = clip(m + ((up + 1) % 3 - 1), 0.0, TOP)
        shifted = x + each(tl.reshape(dmin * near_m, [N]))
        for step in range(3):
            near_sc = clip(sc + ((step + 1) % 3 - 1), 0.0, TOP)
            scale = tl.reshape(d * near_sc, [N])
            difference = shifted - rounded(shifted, scale, LEVELS) * each(scale)
            near_error = total(w * (difference * difference))
            better = near_error < error
            error = tl.where(better, near_error, error)
            best_sc, best_m = tl.where(better, tl.reshape(near_sc, [N]), best_sc), tl.where(better, tl.reshape(near_m, [N]), best_m)
    shape: tl.constexpr = [S, N // S]
    return tl.reshape(best_sc, shape), tl.reshape(best_m, shape), tl.sum(tl.reshape(error, shape), axis=1, keep_dims=True)


@triton.jit
def refit(x, w, sum_w, d, dmin, sc, m, LEVELS: tl.constexpr, SIGNED: tl.constexpr):
    """d and dmin [S, 1] by least squares for the fields' codes, d alone where they cannot be told apart."""
    N: tl.constexpr = x.shape[1]
    shape: tl.constexpr = sc.shape
    codes = rounded(x + each(tl.reshape(dmin * m, [N])), tl.reshape(d * sc, [N]), LEVELS)
    weighted = w * codes
    sum_l, sum_l2 = tl.reshape(total(weighted), shape), tl.reshape(total(weighted * codes), shape)
    sum_lx, sum_x = tl.reshape(total(weighted * x), shape), tl.reshape(total(w * x), shape)
    aa, ab = tl.sum(sc * sc * sum_l2, axis=1, keep_dims=True), tl.sum(sc * m * sum_l, axis=1, keep_dims=True)
    bb = tl.sum(m * m * tl.reshape(sum_w, shape), axis=1, keep_dims=True)
    ax, bx = tl.sum(sc * sum_lx, axis=1, keep_dims=True), tl.sum(m * sum_x, axis=1, keep_dims=True)
    determinant = aa * bb - ab * ab
    sound = determinant > 1e-5 * aa * bb
    by = 1.0 / tl.where(sound, determinant, 1.0)
    alone = (ax + dmin * ab) / tl.maximum(aa, TINY)
    new_d = tl.maximum(rounded16(tl.where(sound, (ax * bb - bx * ab) * by, alone)), 0.0)
    new_dmin = tl.where(sound, rounded16((ax * ab - bx * aa) * by), dmin)
    if not SIGNED:
        new_dmin = tl.maximum(new_dmin, 0.0)
    return new_d, new_dmin


@triton.jit
def best_two_level(x, w, sum_w, G: tl.constexpr, LEVELS: tl.constexpr, TOP: tl.constexpr):
    """d and dmin [S, 1], sc and m [S, G] of super-blocks of G sub-blocks."""
    N: tl.constexpr = x.shape[1]
    shape: tl.constexpr = [N // G, G]
    scale, minimum, sum_l, sum_l2 = search(x, w, sum_w, LEVELS, SIGNED=False)
    per_weight = sum_l / sum_w
    curvature = tl.reshape(sum_l2 - sum_l * per_weight, shape)
    scale, minimum, per_weight = tl.reshape(scale, shape), tl.reshape(minimum, shape), tl.reshape(per_weight, shape)
    d, sc = choose_scale(tl.maximum(scale, 0.0), curvature, TOP)
    made_up = tl.maximum(minimum + (d * sc - scale) * per_weight, 0.0)
    dmin, m = choose_scale(made_up, tl.reshape(sum_w, shape), TOP)
    sc, m, error = improve_codes(x, w, d, dmin, sc, m, LEVELS, TOP)
    new_d, new_dmin = refit(x, w, sum_w, d, dmin, sc, m, LEVELS, SIGNED=False)
    new_sc, new_m, new_error = improve_codes(x, w, new_d, new_dmin, sc, m, LEVELS, TOP)
    better = new_error < error
    d, dmin = tl.where(better, new_d, d), tl.where(better, new_dmin, dmin)
    return d, dmin, tl.where(better, new_sc, sc), tl.where(better, new_m, m)


@triton.jit
def best_one_level(x, w, sum_w, LEVELS: tl.constexpr):
    """d and the minimum [N], x ≈ d·code − minimum, of blocks without sub-blocks."""
    N: tl.constexpr = x.shape[1]
    scale, minimum, _, _ = search(x, w, sum_w, LEVELS, SIGNED=True)
    d, minimum = tl.maximum(rounded16(scale), 0.0), rounded16(minimum)
    one = tl.full([N, 1], 1.0, tl.float32)
    new_d, new_minimum = refit(x, w, sum_w, d[:, None], minimum[:, None], one, one, LEVELS, SIGNED=True)
    new_d, new_minimum = tl.reshape(new_d, [N]), tl.reshape(new_minimum, [N])
    better = one_level_error(x, w, new_d, new_minimum, LEVELS) < one_level_error(x, w, d, minimum, LEVELS)
    return tl.where(better, new_d, d), tl.where(better, new_minimum, minimum)


@triton.jit
def one_level_error(x, w, d, minimum, LEVELS: tl.constexpr):
    shifted = x + each(minimum)
    difference = shifted - rounded(shifted, d, LEVELS) * each(d)
    return total(w * (difference * difference))
