// The K types with a minimum: Q2_K, Q4_K, Q5_K, super-blocks of 256 weights. kquant.py is the definition.
#pragma once
#include "blocks.h"

// eight 6-bit scales and minima in twelve bytes
inline void pack_scale_min(const Row *sc, const Row *m, Row *out) {
    for (int g = 0; g < 4; g++) {
        out[g] = sc[g] | (sc[g + 4] >> 4) << 6;
        out[g + 4] = m[g] | (m[g + 4] >> 4) << 6;
        out[g + 8] = (sc[g + 4] & 15) | (m[g + 4] & 15) << 4;
    }
}

template <class K>
inline void encode_affine(const Blocks<256> &in, Row *out);

struct Q2_K {
    static constexpr int SIZE = 256, BYTES = 84, STEPS = 15;
    static constexpr float FIRST = -0.5f, DELTA = 0.1f, SPREAD = 1.0f;
    static constexpr bool ABSOLUTE = true;
    using Best = Affine<16, 16, 3, 15>;
    static void encode(const Blocks<256> &in, Row *out) { encode_affine<Q2_K>(in, out); }
    static void pack(const Half &d, const Half &dmin, const Row *sc, const Row *m, const Row *codes, Row *out) {
        for (int g = 0; g < 16; g++) out[g] = sc[g] | m[g] << 4;
        pack_planes<256, 2, 0>(codes, out + 16);
        d.put(out + 80), dmin.put(out + 82);
    }
};

struct Q4_K {
    static constexpr int SIZE = 256, BYTES = 144, STEPS = 20;
    static constexpr float FIRST = -1.0f, DELTA = 0.1f, SPREAD = 2.0f;
    static constexpr bool ABSOLUTE = false;
    using Best = Affine<32, 8, 15, 63>;
    static void encode(const Blocks<256> &in, Row *out) { encode_affine<Q4_K>(in, out); }
    static void pack(const Half &d, const Half &dmin, const Row *sc, const Row *m, const Row *codes, Row *out) {
        d.put(out), dmin.put(out + 2), pack_scale_min(sc, m, out + 4);
        pack_nibbles<256, 32>(codes, out + 16);
    }
};

struct Q5_K {
    static constexpr int SIZE = 256, BYTES = 176, STEPS = 15;
    static constexpr float FIRST = -0.5f, DELTA = 0.1f, SPREAD = 2.0f;
    static constexpr bool ABSOLUTE = false;
    using Best = Affine<32, 8, 31, 63>;
    static void encode(const Blocks<256> &in, Row *out) { encode_affine<Q5_K>(in, out); }
    static void pack(const Half &d, const Half &dmin, const Row *sc, const Row *m, const Row *codes, Row *out) {
        d.put(out), dmin.put(out + 2), pack_scale_min(sc, m, out + 4);
        pack_planes<256, 1, 4>(codes, out + 16);
        pack_nibbles<256, 32>(codes, out + 48);
    }
};

// codes 0..top and the scale that gives the largest the largest code
template <int N>
inline F by_the_largest(const F *x, float top, F *codes) {
    F peak = x[0];
    for (int g = 1; g < N; g++) peak = greater(x[g], peak);
    peak = peak + 0.0f;
    F iscale = select(peak > SPAN_MIN, F(top) / peak, 0.0f);
    for (int g = 0; g < N; g++) codes[g] = round_to(x[g] * iscale, 0.0f, top);
    return peak / top;
}

template <class K>
inline void encode_affine(const Blocks<256> &in, Row *out) {
    using Best = typename K::Best;
    constexpr int SIZE = Best::SIZE, GROUPS = Best::GROUPS;
    constexpr float LEVELS = Best::LEVELS, TOP = Best::TOP;
    F w[256], scale[GROUPS], minimum[GROUPS], sum_w[GROUPS], sc[GROUPS], m[GROUPS], d, dmin;
    AffineFit fits[GROUPS];
    if (in.weighted) in.spread_importance(w, K::SPREAD);
    for (int g = 0; g < GROUPS; g++) {
        const F *x = in.x + g * SIZE;
        F *wg = w + g * SIZE;
        if (!in.weighted) {
            F level = K::ABSOLUTE ? 0.0f : root(sum<SIZE>([&](int i) { return x[i] * x[i]; }) / float(SIZE));
            for (int i = 0; i < SIZE; i++) wg[i] = magnitude(x[i]) + level;
        }
        sum_w[g] = sum<SIZE>([&](int i) { return wg[i]; });
        if (in.weighted)
            fits[g] = affine_search<SIZE, false>(x, wg, sum_w[g], LEVELS, -0.9f, 0.05f, 36);
        else
            fits[g] = affine_search<SIZE, K::ABSOLUTE>(x, wg, sum_w[g], LEVELS, K::FIRST, K::DELTA, K::STEPS);
        scale[g] = fits[g].scale, minimum[g] = fits[g].minimum;
    }
    if (in.weighted)
        d = positive_search<GROUPS>(scale, sum_w, TOP, sc), dmin = positive_search<GROUPS>(minimum, sum_w, TOP, m);
    else
        d = by_the_largest<GROUPS>(scale, TOP, sc), dmin = by_the_largest<GROUPS>(minimum, TOP, m);
    Half d16 = d, dmin16 = dmin;
    Row codes[256], sc_rows[GROUPS], m_rows[GROUPS];
    for (int g = 0; g < GROUPS; g++) {
        F s = d16.number * sc[g], low = dmin16.number * m[g];
        I unscaled = s == 0.0f;  // there ggml keeps the codes of the search
        for (int i = g * SIZE; i < (g + 1) * SIZE; i++) {
            F found = select(unscaled, (in.x[i] - fits[g].origin) * fits[g].iscale, (in.x[i] + low) / s);
            codes[i] = row(round_to(found, 0.0f, LEVELS));
        }
        sc_rows[g] = row(sc[g]), m_rows[g] = row(m[g]);
    }
    if (in.best) {
        in.floor_importance(w);
        Best best(in.x, w, in.trials);
        F old_error = 0.0f, error;
        for (int g = 0; g < GROUPS; g++) {
            F s = d16.number * sc[g], low = dmin16.number * m[g];
            old_error = old_error + sum_by_16<SIZE>([&](int k) {
                int i = g * SIZE + k;
                F difference = in.x[i] + low - numbers(codes[i]) * s;
                return difference * difference * w[i];
            });
        }
        typename Best::Fields found = best.best(error);
        I better = error < old_error;
        d16 = select(better, found.d, d16.number), dmin16 = select(better, found.dmin, dmin16.number);
        for (int g = 0; g < GROUPS; g++) {
            sc_rows[g] = row(select(better, found.sc[g], sc[g])), m_rows[g] = row(select(better, found.m[g], m[g]));
            for (int i = 0; i < SIZE; i++) {
                Row &code = codes[g * SIZE + i];
                code = select(better, row(best.rounded(found, g, i)), code);
            }
        }
    }
    K::pack(d16, dmin16, sc_rows, m_rows, codes, out);
}
