"""The search of ../ggml_best_symmetric.py, x ≈ scale·code, on tiles of ggml_columns. `w` 1.0 means no weights.

Names, trials and their order are the definition's, but that sums run in another order; fields are [S, G], S super-blocks.
LOW and HIGH are the ends of the codes, those of ../ggml_codebook.py where CODEBOOK.
"""

import triton
import triton.language as tl

from .ggml_codebook import near_values
from .ggml_columns import TINY, clip, each, peak, rint, rounded16, total

# below this an inverse could overflow
NO_SCALE = tl.constexpr(1e-37)


@triton.jit
def inverse(x):
    """1/x, and 0 where that could overflow."""
    none = tl.abs(x) < NO_SCALE
    return tl.where(none, 0.0, 1.0 / tl.where(none, 1.0, x))


@triton.jit
def rounded(x, iscale, LOW: tl.constexpr, HIGH: tl.constexpr, CODEBOOK: tl.constexpr):
    return near_values(x * each(iscale)) if CODEBOOK else clip(rint(x * each(iscale)), LOW, HIGH)


@triton.jit
def search(
    x, w, LOW: tl.constexpr, HIGH: tl.constexpr, CODEBOOK: tl.constexpr,
    COUNT: tl.constexpr, SIDES: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The scale with the best least-squares fit over the trials, and Σwl² under it, [N].

    Trials take the peak to the codes FIRST + i·STEP and, for the other end, SECOND − i·STEP, i < COUNT.
    """
    inverse_peak = inverse(peak(x))
    gain = tl.full(inverse_peak.shape, -1.0, tl.float32)
    scale, curvature = tl.zeros_like(gain), tl.zeros_like(gain)
    for i in range(COUNT):
        for side in range(SIDES):
            code = FIRST + i * STEP + side * (SECOND - FIRST - 2 * i * STEP)
            codes = rounded(x, code * inverse_peak, LOW, HIGH, CODEBOOK)
            weighted = w * codes
            l2, lx = total(weighted * codes), total(weighted * x)
            fit = lx / tl.maximum(l2, TINY)
            better = fit * lx > gain
            gain, scale = tl.where(better, fit * lx, gain), tl.where(better, fit, scale)
            curvature = tl.where(better, l2, curvature)
    return scale, curvature


@triton.jit
def choose_scale(target, curvature, SC_LOW: tl.constexpr, SC_HIGH: tl.constexpr):
    """d [S, 1] and sub-block scales [S, G] with the least Σ curvature·(d·sc − target)² over 13 factors for both signs of d."""
    low, high = tl.min(target, axis=1, keep_dims=True), tl.max(target, axis=1, keep_dims=True)
    largest = tl.where(high > -low, high, low)
    error, d = tl.full(largest.shape, float("inf"), tl.float32), tl.zeros_like(largest)
    sc = tl.zeros_like(target)
    for end in range(2):
        per_end = 1.0 / SC_LOW + end * (1.0 / SC_HIGH - 1.0 / SC_LOW)
        for i in range(-6, 7):
            trial = rounded16(largest * ((1.0 + (1.28 / SC_HIGH) * i) * per_end))
            trial_sc = clip(rint(target * inverse(trial)), SC_LOW, SC_HIGH)
            difference = trial * trial_sc - target
            trial_error = tl.sum(difference * difference * curvature, axis=1, keep_dims=True)
            better = trial_error < error
            error, d, sc = tl.where(better, trial_error, error), tl.where(better, trial, d), tl.where(better, trial_sc, sc)
    return d, sc


@triton.jit
def improve_codes(
    x, w, d, sc, LOW: tl.constexpr, HIGH: tl.constexpr, CODEBOOK: tl.constexpr, SC_LOW: tl.constexpr, SC_HIGH: tl.constexpr
):  # fmt: skip
    """For each sub-block the best of sc, sc ± 1, sc ± 2 with new codes each; and the errors [S, 1]."""
    N: tl.constexpr = x.shape[1]
    shape: tl.constexpr = sc.shape
    error, best = tl.full([N], float("inf"), tl.float32), tl.reshape(sc, [N])
    for i in range(5):
        near = clip(sc + (i + 1) // 2 * (1 - i % 2 * 2), SC_LOW, SC_HIGH)
        scale = tl.reshape(d * near, [N])
        difference = x - rounded(x, inverse(scale), LOW, HIGH, CODEBOOK) * each(scale)
        near_error = total(w * (difference * difference))
        better = near_error < error
        error, best = tl.where(better, near_error, error), tl.where(better, tl.reshape(near, [N]), best)
    return tl.reshape(best, shape), tl.sum(tl.reshape(error, shape), axis=1, keep_dims=True)


@triton.jit
def refit(x, w, d, sc, LOW: tl.constexpr, HIGH: tl.constexpr, CODEBOOK: tl.constexpr):
    """d [S, 1] by least squares for the codes under d·sc."""
    N: tl.constexpr = x.shape[1]
    shape: tl.constexpr = sc.shape
    codes = rounded(x, inverse(tl.reshape(d * sc, [N])), LOW, HIGH, CODEBOOK)
    weighted = w * codes
    sum_l2, sum_lx = tl.reshape(total(weighted * codes), shape), tl.reshape(total(weighted * x), shape)
    above, below = tl.sum(sc * sum_lx, axis=1, keep_dims=True), tl.sum(sc * sc * sum_l2, axis=1, keep_dims=True)
    return rounded16(above / tl.maximum(below, TINY))


@triton.jit
def best_two_level(
    x, w, scale, curvature, LOW: tl.constexpr, HIGH: tl.constexpr, CODEBOOK: tl.constexpr,
    SC_LOW: tl.constexpr, SC_HIGH: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """d [S, 1] and sc [S, G] of super-blocks of G sub-blocks, from what `search` found for each."""
    shape: tl.constexpr = [x.shape[1] // G, G]
    d, sc = choose_scale(tl.reshape(scale, shape), tl.reshape(curvature, shape), SC_LOW, SC_HIGH)
    sc, error = improve_codes(x, w, d, sc, LOW, HIGH, CODEBOOK, SC_LOW, SC_HIGH)
    new_d = refit(x, w, d, sc, LOW, HIGH, CODEBOOK)
    new_sc, new_error = improve_codes(x, w, new_d, sc, LOW, HIGH, CODEBOOK, SC_LOW, SC_HIGH)
    better = new_error < error
    return tl.where(better, new_d, d), tl.where(better, new_sc, sc)


@triton.jit
def best_one_level(x, w, scale, LOW: tl.constexpr, HIGH: tl.constexpr, CODEBOOK: tl.constexpr):
    """d [N] of blocks without sub-blocks, from what `search` found."""
    N: tl.constexpr = x.shape[1]
    d = rounded16(scale)
    new_d = tl.reshape(refit(x, w, d[:, None], tl.full([N, 1], 1.0, tl.float32), LOW, HIGH, CODEBOOK), [N])
    error, new_error = one_level_error(x, w, d, LOW, HIGH, CODEBOOK), one_level_error(x, w, new_d, LOW, HIGH, CODEBOOK)
    return tl.where(new_error < error, new_d, d)


@triton.jit
def one_level_error(x, w, d, LOW: tl.constexpr, HIGH: tl.constexpr, CODEBOOK: tl.constexpr):
    difference = x - rounded(x, inverse(d), LOW, HIGH, CODEBOOK) * each(d)
    return total(w * (difference * difference))
