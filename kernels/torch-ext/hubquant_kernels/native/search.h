// ggml's searches for the scale of a sub-block, LANES of them side by side; ggml_search.py says what they do and is their
// definition. Sums run in ggml's order, and the compiler is told not to fuse: the results are ggml's to the last bit.
#pragma once
#include "lanes.h"

constexpr float GROUP_MAX_EPS = 1e-15f;
constexpr float SPAN_MIN = 1e-36f;
constexpr float INF = INFINITY;
constexpr float VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

inline F round_to(F x, float low, float high) { return rounded(clamp(x, low, high)); }

// the nearest of VALUES; of two as near the upper one
inline F nearest_value(F x) {
    F found = VALUES[0];
    for (int i = 1; i < 16; i++) found = select(x >= F((VALUES[i - 1] + VALUES[i]) / 2), VALUES[i], found);
    return found;
}

// its place in VALUES
inline F nearest_place(F x) {
    F found = 0.0f;
    for (int i = 1; i < 16; i++) found = select(x >= F((VALUES[i - 1] + VALUES[i]) / 2), float(i), found);
    return found;
}

// Σ of(i)
template <int N, class Term>
inline F sum(Term of) {
    F total = of(0);
    for (int i = 1; i < N; i++) total = total + of(i);
    return total;
}

// the entry of largest magnitude, the first of them
template <int N>
inline F signed_peak(const F *x) {
    F low = x[0], high = x[0];
    for (int i = 1; i < N; i++) low = less(x[i], low), high = greater(x[i], high);
    F peak = select(high > -low, high, low);
    I tied = high == -low;
    if (any(tied))
        for (int i = N - 1; i >= 0; i--) peak = select(tied & (magnitude(x[i]) == high), x[i], peak);
    return peak;
}

struct AffineFit {  // x ≈ scale·code − minimum; the codes were round((x − origin)·iscale)
    F scale, minimum, iscale, origin;
};

template <int N, bool ABSOLUTE>
inline AffineFit affine_search(const F *x, const F *w, F sum_w, float levels, float first, float delta, int steps) {
    F low = 0.0f, high = x[0], codes[N];
    for (int i = 0; i < N; i++) low = less(x[i], low), high = greater(x[i], high);
    I flat = high - low < SPAN_MIN;
    high = select(flat, low + 1.0f, high);
    const F sum_x = sum<N>([&](int i) { return w[i] * x[i]; });
    auto error = [&](F scale, F minimum) {
        return sum<N>([&](int i) {
            F difference = codes[i] * scale + minimum - x[i];
            return (ABSOLUTE ? magnitude(difference) : difference * difference) * w[i];
        });
    };
    F iscale = F(levels) / (high - low), origin = low, scale = F(1.0f) / iscale, minimum = low;
    for (int i = 0; i < N; i++) codes[i] = round_to((x[i] - low) * iscale, 0.0f, levels);
    F best = error(scale, minimum);
    for (int step = 0; step <= steps; step++) {
        const F inverse = F((first + delta * step) + levels) / (high - minimum);
        F l = 0.0f, l2 = 0.0f, lx = 0.0f;
        for (int i = 0; i < N; i++) {
            codes[i] = round_to((x[i] - minimum) * inverse, 0.0f, levels);
            F wl = w[i] * codes[i];
            l = l + wl, l2 = l2 + wl * codes[i], lx = lx + wl * x[i];
        }
        F determinant = l2 * sum_w - l * l;
        F new_scale = (lx * sum_w - sum_x * l) / determinant, new_minimum = (l2 * sum_x - l * lx) / determinant;
        I positive = new_minimum > 0.0f;
        new_scale = select(positive, lx / l2, new_scale);
        new_minimum = select(positive, 0.0f, new_minimum);
        F new_error = error(new_scale, new_minimum);
        I better = (determinant > 0.0f) & (new_error < best);
        best = select(better, new_error, best), iscale = select(better, inverse, iscale), origin = select(better, minimum, origin);
        scale = select(better, new_scale, scale), minimum = select(better, new_minimum, minimum);
    }
    return {select(flat, 0.0f, scale), -select(flat, low, minimum), select(flat, 0.0f, iscale), origin};
}

struct SymmetricFit {  // x ≈ scale·code; the codes were round(x·iscale)
    F scale, iscale;
};

// The first of the inverse scales with the highest (Σwxl)²/Σwl². `round` gives the codes, ASSOCIATED what is multiplied first
template <int N, class Round>
inline SymmetricFit best_ratio(const F *x, const F *w, const F *iscales, int trials, Round round, bool wx_first) {
    F scale = 0.0f, iscale = iscales[0], best = 0.0f, wx[N];
    for (int i = 0; i < N; i++) wx[i] = w[i] * x[i];
    for (int trial = 0; trial < trials; trial++) {
        F lx = 0.0f, l2 = 0.0f;
        for (int i = 0; i < N; i++) {
            F l = round(x[i] * iscales[trial]), wl = w[i] * l;
            lx = lx + (wx_first ? wx[i] * l : wl * x[i]);
            l2 = l2 + wl * l;
        }
        F new_scale = lx / l2;
        I better = l2 > 0.0f;
        if (trial) better = better & (lx * lx > best * l2);
        scale = select(better, new_scale, scale), iscale = select(better, iscales[trial], iscale);
        best = select(better, new_scale * lx, best);
    }
    return {scale, iscale};
}

// Codes −levels..levels−1
template <int N>
inline SymmetricFit symmetric_search(const F *x, const F *w, float levels) {
    F peak = signed_peak<N>(x), iscales[19];
    I zero = magnitude(peak) < GROUP_MAX_EPS;
    peak = select(zero, 1.0f, peak);
    for (int i = 0, step = -9; step <= 9; step++) iscales[step ? ++i : 0] = F(-(levels + 0.1f * step)) / peak;
    auto fit = best_ratio<N>(x, w, iscales, 19, [=](F v) { return round_to(v, -levels, levels - 1); }, true);
    return {select(zero, 0.0f, fit.scale), select(zero, 0.0f, fit.iscale)};
}

// The scale for codes of VALUES
template <int N>
inline F codebook_search(const F *x, const F *w) {
    F peak = signed_peak<N>(x), iscales[16];
    I zero = magnitude(peak) < GROUP_MAX_EPS;
    peak = select(zero, 1.0f, peak);
    iscales[0] = F(1.0f) / (-peak / VALUES[0]);
    for (int i = 0; i < 15; i++) iscales[i + 1] = F(VALUES[0] - 7 + i) / peak;
    return select(zero, 0.0f, best_ratio<N>(x, w, iscales, 16, nearest_value, false).scale);
}

inline F ratio(F a, F b) { return select(b > 0.0f, a / b, 0.0f); }

// Up to five sweeps that move one code at a time; lx and l2 become Σwxl and Σwl²
template <int N>
inline void improve_codes(const F *x, const F *w, F *codes, float low, float high, F &lx, F &l2) {
    F wx[N];
    for (int i = 0; i < N; i++) wx[i] = w[i] * x[i];
    lx = sum<N>([&](int i) { return wx[i] * codes[i]; });
    l2 = sum<N>([&](int i) { return w[i] * codes[i] * codes[i]; });
    for (int sweep = 0; sweep < 5; sweep++) {
        I changed{};
        for (int i = 0; i < N; i++) {
            F others_lx = lx - wx[i] * codes[i], others_l2 = l2 - w[i] * codes[i] * codes[i];
            F moved = round_to(x[i] * others_l2 / others_lx, low, high);
            F new_lx = others_lx + wx[i] * moved, new_l2 = others_l2 + w[i] * moved * moved;
            I better = (others_lx > 0.0f) & (moved != codes[i]) & (new_lx * new_lx * l2 > lx * lx * new_l2);
            better = better & ((low < 0 ? new_l2 : others_l2) > 0.0f);
            lx = select(better, new_lx, lx), l2 = select(better, new_l2, l2), codes[i] = select(better, moved, codes[i]);
            changed = changed | better;
        }
        if (!any(changed)) break;
    }
}

// Codes 0..levels for x ≥ 0; returns the scale
template <int N>
inline F positive_search(const F *x, const F *w, float levels, F *codes) {
    F peak = x[0];
    for (int i = 1; i < N; i++) peak = greater(x[i], peak);
    I zero = peak < GROUP_MAX_EPS;
    peak = select(zero, 1.0f, peak);
    F best = INF, iscale = F(levels) / peak;
    for (int i = -5; i <= 4; i++) {  // the middle of the ladder first
        if (i == 0) continue;
        F inverse = F(0.1f * (i == -5 ? 0 : i) + levels) / peak, scale = F(1.0f) / inverse;
        F error = sum<N>([&](int k) {
            F difference = x[k] - rounded(less(x[k] * inverse, levels)) * scale;
            return difference * w[k] * difference;
        });
        I better = error < best;
        best = select(better, error, best), iscale = select(better, inverse, iscale);
    }
    for (int i = 0; i < N; i++) codes[i] = rounded(less(x[i] * iscale, levels));
    F lx, l2;
    improve_codes<N>(x, w, codes, 0.0f, levels, lx, l2);
    for (int i = 0; i < N; i++) codes[i] = select(zero, 0.0f, codes[i]);
    return select(zero, 0.0f, ratio(lx, l2));
}
