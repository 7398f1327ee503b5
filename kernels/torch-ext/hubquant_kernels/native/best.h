// A lower error than ggml's in the same bytes, LANES blocks side by side. What is done, and why, is said in ggml_best_affine.py
// and ggml_best_symmetric.py; the operations and their order are the same here, so that the bytes hardly ever differ.
#pragma once
#include "search.h"

constexpr float TINY = 1e-30f;

// Σ of(i) as torch adds: sixteen in their order, and then those sums
template <int N, class Term>
inline F sum_by_16(Term of) {
    F total = sum<16>(of);
    for (int start = 16; start < N; start += 16) total = total + sum<16>([&](int i) { return of(start + i); });
    return total;
}

inline F inverse_positive(F x) { return F(1.0f) / greater(x, TINY); }
inline F inverse(F x) { return select(magnitude(x) < 1e-37f, 0.0f, F(1.0f) / x); }

// What is tried: for the scale of a sub-block the codes that the end of its range (or its peak) may get, and factors on the
// float16 scale that gives the largest sub-block scale the largest code
struct Trials {
    const float *ends, *factors;
    int n_ends, n_factors;
};

// x ≈ d·sc·code − dmin·m with codes 0..LEVELS_ and fields 0..TOP_; GROUPS_ sub-blocks of SIZE_. Without sub-blocks (TOP_ 1)
// x ≈ d·code − dmin, and dmin may have either sign
template <int SIZE_, int GROUPS_, int LEVELS_, int TOP_>
struct Affine {
    static constexpr int SIZE = SIZE_, GROUPS = GROUPS_, LEVELS = LEVELS_, TOP = TOP_;
    static constexpr bool SIGNED = TOP == 1;

    struct Fields {
        F d, dmin, sc[GROUPS], m[GROUPS];
    };
    struct Fit {
        F error, scale, minimum, l, l2;
    };

    const F *x, *w;
    const Trials &trials;
    F sum_w[GROUPS];

    Affine(const F *x, const F *w, const Trials &trials) : x(x), w(w), trials(trials) {
        for (int g = 0; g < GROUPS; g++) sum_w[g] = sum_by_16<SIZE>([&](int i) { return w[g * SIZE + i]; });
    }

    static F code(F shifted, F iscale) { return round_to(shifted * iscale, 0.0f, LEVELS); }
    F rounded(const Fields &f, int g, int i) const {
        return code(x[g * SIZE + i] + f.dmin * f.m[g], inverse_positive(f.d * f.sc[g]));
    }

    // the best least-squares fit of a sub-block over the ends of its range
    Fit search(int g) const {
        const F *x = this->x + g * SIZE, *w = this->w + g * SIZE;
        F low = x[0], high = x[0], highest = SIGNED ? INF : 0.0f, shifted[SIZE];
        for (int i = 0; i < SIZE; i++) low = less(x[i], low), high = greater(x[i], high);
        low = less(low, highest);
        Fit best{INF, INF, INF, INF, INF};
        for (double offset : {0.0, -0.9, -0.45, 0.45, 0.9}) {
            F origin = less(fused(float(offset / LEVELS), high - low, low), highest);
            F per_step = inverse_positive(high - origin);
            for (int i = 0; i < SIZE; i++) shifted[i] = x[i] - origin;
            F sum_x = sum_by_16<SIZE>([&](int i) { return w[i] * shifted[i]; });
            F sum_xx = sum_by_16<SIZE>([&](int i) { return w[i] * shifted[i] * shifted[i]; });
            Fit found{INF, 0.0f, 0.0f, 0.0f, 0.0f};
            for (int i = 0; i < trials.n_ends; i++) {
                F iscale = trials.ends[i] * per_step;
                Fit fit = least_squares(shifted, w, iscale, sum_w[g], sum_x, sum_xx, highest - origin);
                keep(found, fit, fit.error < found.error);
            }
            found.minimum = -(found.minimum + origin);
            keep(best, found, found.error < best.error);
        }
        return best;
    }

    static void keep(Fit &kept, const Fit &fit, I better) {
        kept = {select(better, fit.error, kept.error), select(better, fit.scale, kept.scale),
                select(better, fit.minimum, kept.minimum), select(better, fit.l, kept.l), select(better, fit.l2, kept.l2)};
    }

    // x ≈ scale·code + start, start ≤ highest; `minimum` is the start
    static Fit least_squares(const F *x, const F *w, F iscale, F sum_w, F sum_x, F sum_xx, F highest) {
        F l = 0.0f, l2 = 0.0f, lx = 0.0f;
        for (int part = 0; part < SIZE; part += 16) {
            F part_l = 0.0f, part_l2 = 0.0f, part_lx = 0.0f;
            for (int i = part; i < part + 16; i++) {
                F q = code(x[i], iscale), wl = w[i] * q;
                part_l = part_l + wl, part_l2 = part_l2 + wl * q, part_lx = part_lx + wl * x[i];
            }
            l = l + part_l, l2 = l2 + part_l2, lx = lx + part_lx;
        }
        F product = l2 * sum_w;
        F determinant = greater(greater(fused(-l, l, product), product * 1e-6f), TINY);
        F start = less(fused(-l, lx, l2 * sum_x) / determinant, highest);
        F rest = fused(-start, l, lx), scale = rest / greater(l2, TINY);
        F error = (start * sum_w - 2.0f * sum_x) * start + sum_xx;
        error = fused(-2.0f * scale, rest, fused(scale * scale, l2, error));
        return {error, scale, start, l, l2};
    }

    // d and codes 0..TOP with the least Σ curvature·(d·code − target)² for targets ≥ 0
    void choose_scale(const F *target, const F *curvature, F &d, F *codes) const {
        F peak = target[0], best = INF;
        for (int g = 1; g < GROUPS; g++) peak = greater(target[g], peak);
        peak = peak / float(TOP);
        d = 0.0f;
        for (int i = 0; i < trials.n_factors; i++) {
            F tried = rounded16(peak * trials.factors[i]), divisor = greater(tried, TINY);
            F error = sum<GROUPS>([&](int g) {
                F difference = tried * round_to(target[g] / divisor, 0.0f, TOP) - target[g];
                return difference * difference * curvature[g];
            });
            I better = error < best;
            best = select(better, error, best), d = select(better, tried, d);
        }
        for (int g = 0; g < GROUPS; g++) codes[g] = round_to(target[g] / greater(d, TINY), 0.0f, TOP);
    }

    Fields first_fields() const {
        Fields f;
        if constexpr (TOP == 1) {
            Fit fit = search(0);
            f.d = greater(rounded16(fit.scale), 0.0f), f.dmin = rounded16(fit.minimum), f.sc[0] = f.m[0] = 1.0f;
            return f;
        }
        F scale[GROUPS], minimum[GROUPS], per_weight[GROUPS], target[GROUPS], curvature[GROUPS];
        for (int g = 0; g < GROUPS; g++) {
            Fit fit = search(g);
            scale[g] = fit.scale, minimum[g] = fit.minimum, per_weight[g] = fit.l / sum_w[g];
            target[g] = greater(fit.scale, 0.0f), curvature[g] = fit.l2 - fit.l * per_weight[g];
        }
        choose_scale(target, curvature, f.d, f.sc);
        for (int g = 0; g < GROUPS; g++) target[g] = greater(minimum[g] + (f.d * f.sc[g] - scale[g]) * per_weight[g], 0.0f);
        choose_scale(target, sum_w, f.dmin, f.m);
        return f;
    }

    // Σw(x − x̂)² of a sub-block with the nearest codes
    F error(int g, F scale, F minimum) const {
        F iscale = inverse_positive(scale);
        return sum_by_16<SIZE>([&](int i) {
            F shifted = x[g * SIZE + i] + minimum, difference = shifted - code(shifted, iscale) * scale;
            return difference * difference * w[g * SIZE + i];
        });
    }

    // for each sub-block the best of the nine neighbours (sc ± 1, m ± 1); returns the error of the block
    F improve(Fields &f) const {
        if (TOP == 1) return error(0, f.d, f.dmin);
        F total = 0.0f;
        for (int g = 0; g < GROUPS; g++) {
            F best = INF, sc = INF, m = INF;
            for (int up : {0, -1, 1})
                for (int step : {0, -1, 1}) {
                    F tried = clamp(f.sc[g] + float(step), 0.0f, TOP), below = clamp(f.m[g] + float(up), 0.0f, TOP);
                    F found = error(g, f.d * tried, f.dmin * below);
                    I better = found < best;
                    best = select(better, found, best), sc = select(better, tried, sc), m = select(better, below, m);
                }
            f.sc[g] = sc, f.m[g] = m, total = total + best;
        }
        return total;
    }

    // d and dmin by least squares for the fields' codes, d alone where they cannot be told apart
    Fields refit(const Fields &f) const {
        F aa = 0.0f, ab = 0.0f, bb = 0.0f, ax = 0.0f, bx = 0.0f;
        for (int g = 0; g < GROUPS; g++) {
            F minimum = f.dmin * f.m[g], iscale = inverse_positive(f.d * f.sc[g]), l = 0.0f, l2 = 0.0f, lx = 0.0f, wx = 0.0f;
            for (int part = 0; part < SIZE; part += 16) {
                F part_l = 0.0f, part_l2 = 0.0f, part_lx = 0.0f, part_wx = 0.0f;
                for (int i = g * SIZE + part; i < g * SIZE + part + 16; i++) {
                    F q = code(x[i] + minimum, iscale), wl = w[i] * q;
                    part_l = part_l + wl, part_l2 = part_l2 + wl * q;
                    part_lx = part_lx + wl * x[i], part_wx = part_wx + w[i] * x[i];
                }
                l = l + part_l, l2 = l2 + part_l2, lx = lx + part_lx, wx = wx + part_wx;
            }
            F sc = f.sc[g], m = f.m[g];
            aa = aa + sc * sc * l2, ab = ab + sc * m * l, bb = bb + m * m * sum_w[g], ax = ax + sc * lx, bx = bx + m * wx;
        }
        F determinant = aa * bb - ab * ab, alone = (ax + f.dmin * ab) / greater(aa, TINY);
        I sound = determinant > 1e-5f * aa * bb;
        Fields found = f;
        found.d = greater(rounded16(select(sound, (ax * bb - bx * ab) / determinant, alone)), 0.0f);
        found.dmin = select(sound, rounded16((ax * ab - bx * aa) / determinant), f.dmin);
        if (!SIGNED) found.dmin = greater(found.dmin, 0.0f);
        return found;
    }

    // the best fields, and their error
    Fields best(F &error) const {
        Fields fields = first_fields();
        error = improve(fields);
        Fields others = refit(fields);
        F other_error = improve(others);
        I better = other_error < error;
        error = less(other_error, error);
        fields.d = select(better, others.d, fields.d), fields.dmin = select(better, others.dmin, fields.dmin);
        for (int g = 0; g < GROUPS; g++) {
            fields.sc[g] = select(better, others.sc[g], fields.sc[g]);
            fields.m[g] = select(better, others.m[g], fields.m[g]);
        }
        return fields;
    }
};

// Codes are the whole numbers LOW..HIGH, stored as counted from LOW
template <int LOW_, int HIGH_>
struct Steps {
    static constexpr float LOW = LOW_, HIGH = HIGH_;
    static F value(F x) { return round_to(x, LOW, HIGH); }
    static F place(F x) { return value(x) - LOW; }
    static F held(F place) { return place + LOW; }
};

// Codes are VALUES, stored as places in them
struct Codebook {
    static constexpr float LOW = VALUES[0], HIGH = VALUES[15];
    static F value(F x) { return nearest_value(x); }
    static F place(F x) { return nearest_place(x); }
    static F held(F place) {
        F found = VALUES[0];
        for (int i = 1; i < 16; i++) found = select(place >= F(float(i)), VALUES[i], found);
        return found;
    }
};

// x ≈ d·sc·code with codes of GRID_ and sc SC_LOW..SC_HIGH. Without sub-blocks (GROUPS_ 1) x ≈ d·code
template <int SIZE_, int GROUPS_, class Grid_, int SC_LOW, int SC_HIGH>
struct Symmetric {
    static constexpr int SIZE = SIZE_, GROUPS = GROUPS_;
    using Grid = Grid_;

    struct Fields {
        F d, sc[GROUPS];
    };

    const F *x, *w;
    const Trials &trials;

    Symmetric(const F *x, const F *w, const Trials &trials) : x(x), w(w), trials(trials) {}

    static F clamp_sc(F x) { return clamp(x, SC_LOW, SC_HIGH); }
    F scale(const Fields &f, int g) const { return GROUPS == 1 ? f.d : f.d * f.sc[g]; }

    // Σwl² and Σwxl with the nearest codes
    void sums(int g, F iscale, F &l2, F &lx) const {
        l2 = lx = 0.0f;
        for (int start = g * SIZE; start < (g + 1) * SIZE; start += 16) {
            F part_l2 = 0.0f, part_lx = 0.0f;
            for (int i = start; i < start + 16; i++) {
                F q = Grid::value(x[i] * iscale);
                part_l2 = part_l2 + w[i] * q * q, part_lx = part_lx + w[i] * x[i] * q;
            }
            l2 = l2 + part_l2, lx = lx + part_lx;
        }
    }

    // the scale with the best least-squares fit of a sub-block, and Σwl² under it
    void search(int g, F &scale, F &l2) const {
        F peak = inverse(signed_peak<SIZE>(x + g * SIZE)), best = -INF;
        scale = l2 = 0.0f;
        for (int i = 0; i < trials.n_ends; i++) {
            F new_l2, lx;
            sums(g, trials.ends[i] * peak, new_l2, lx);
            F new_scale = lx / greater(new_l2, TINY), taken = new_scale * lx;
            I better = taken > best;
            best = select(better, taken, best), scale = select(better, new_scale, scale), l2 = select(better, new_l2, l2);
        }
    }

    // d and sc with the least Σ curvature·(d·sc − target)², for both signs of d
    void choose_scale(const F *target, const F *curvature, Fields &f) const {
        F peak = signed_peak<GROUPS>(target), best = INF;
        f.d = 0.0f;
        for (int i = 0; i < 2 * trials.n_factors; i++) {
            float end = trials.factors[i % trials.n_factors] / (i < trials.n_factors ? SC_LOW : SC_HIGH);
            F tried = rounded16(peak * end), iscale = inverse(tried);
            F error = sum<GROUPS>([&](int g) {
                F difference = tried * round_to(target[g] * iscale, SC_LOW, SC_HIGH) - target[g];
                return difference * difference * curvature[g];
            });
            I better = error < best;
            best = select(better, error, best), f.d = select(better, tried, f.d);
        }
        for (int g = 0; g < GROUPS; g++) f.sc[g] = round_to(target[g] * inverse(f.d), SC_LOW, SC_HIGH);
    }

    Fields first_fields() const {
        Fields f;
        F scale[GROUPS], l2[GROUPS];
        for (int g = 0; g < GROUPS; g++) search(g, scale[g], l2[g]);
        if constexpr (GROUPS > 1)
            choose_scale(scale, l2, f);
        else
            f.d = rounded16(scale[0]);
        return f;
    }

    // Σw(x − x̂)² of a sub-block with the nearest codes
    F error(int g, F scale) const {
        F iscale = inverse(scale);
        return sum_by_16<SIZE>([&](int k) {
            int i = g * SIZE + k;
            F difference = x[i] - Grid::value(x[i] * iscale) * scale;
            return difference * difference * w[i];
        });
    }

    // for each sub-block the best of sc, sc ± 1, sc ± 2; returns the error of the block
    F improve(Fields &f) const {
        if (GROUPS == 1) return error(0, f.d);
        F total = 0.0f;
        for (int g = 0; g < GROUPS; g++) {
            F best = INF, sc = INF;
            for (int step : {0, -1, 1, -2, 2}) {
                F tried = clamp_sc(f.sc[g] + float(step)), found = error(g, f.d * tried);
                I better = found < best;
                best = select(better, found, best), sc = select(better, tried, sc);
            }
            f.sc[g] = sc, total = total + best;
        }
        return total;
    }

    // d by least squares for the codes
    Fields refit(const Fields &f) const {
        F over = 0.0f, under = 0.0f;
        for (int g = 0; g < GROUPS; g++) {
            F l2, lx, sc = GROUPS == 1 ? F(1.0f) : f.sc[g];
            sums(g, inverse(scale(f, g)), l2, lx);
            over = over + sc * lx, under = under + sc * sc * l2;
        }
        Fields found = f;
        found.d = rounded16(over / greater(under, TINY));
        return found;
    }

    // the best fields, and their error
    Fields best(F &error) const {
        Fields fields = first_fields();
        error = improve(fields);
        Fields others = refit(fields);
        F other_error = improve(others);
        I better = other_error < error;
        error = less(other_error, error);
        fields.d = select(better, others.d, fields.d);
        if (GROUPS > 1)
            for (int g = 0; g < GROUPS; g++) fields.sc[g] = select(better, others.sc[g], fields.sc[g]);
        return fields;
    }
};
