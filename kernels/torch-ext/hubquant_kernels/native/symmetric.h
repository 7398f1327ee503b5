// The K types without a minimum: Q3_K, Q6_K, IQ4_XS, super-blocks of 256 weights. kquant_symmetric.py is the definition.
#pragma once
#include "blocks.h"

// the bytes of a type before they are packed: d, and whole numbers sc and codes (as stored)
template <class Best>
struct Stored {
    static constexpr int SIZE = Best::SIZE, GROUPS = Best::GROUPS;
    using Grid = typename Best::Grid;
    Half d = F(0.0f);
    F sc[GROUPS];
    Row codes[SIZE * GROUPS];

    // takes what is better where it is found
    void improve(const Blocks<SIZE * GROUPS> &in) {
        F w[SIZE * GROUPS], old_error = 0.0f, error;
        in.floor_importance(w);
        Best best(in.x, w, in.trials);
        for (int g = 0; g < GROUPS; g++) {
            F scale = GROUPS == 1 ? d.number : sc[g] * d.number;
            old_error = old_error + sum_by_16<SIZE>([&](int k) {
                int i = g * SIZE + k;
                F difference = in.x[i] - Grid::held(numbers(codes[i])) * scale;
                return difference * difference * w[i];
            });
        }
        auto found = best.best(error);
        I better = error < old_error;
        d = select(better, found.d, d.number);
        for (int g = 0; g < GROUPS; g++) {
            if (GROUPS > 1) sc[g] = select(better, found.sc[g], sc[g]);
            F iscale = inverse(best.scale(found, g));
            for (int i = g * SIZE; i < (g + 1) * SIZE; i++)
                codes[i] = select(better, row(Grid::place(in.x[i] * iscale)), codes[i]);
        }
    }
};

struct Q3_K {
    static constexpr int SIZE = 256, BYTES = 110, LEVELS = 4;
    using Best = Symmetric<16, 16, Steps<-4, 3>, -32, 31>;
    static void encode(const Blocks<256> &in, Row *out);
    static void pack(const Stored<Best> &s, Row *out) {
        pack_planes<256, 1, 2>(s.codes, out);
        pack_planes<256, 2, 0>(s.codes, out + 32);
        Row sc[16];
        for (int g = 0; g < 16; g++) sc[g] = row(s.sc[g] + 32.0f);
        pack_nibbles<16, 8>(sc, out + 96);
        for (int g = 0; g < 4; g++) out[104 + g] = sc[g] >> 4 | sc[g + 4] >> 4 << 2 | sc[g + 8] >> 4 << 4 | sc[g + 12] >> 4 << 6;
        s.d.put(out + 108);
    }
};

struct Q6_K {
    static constexpr int SIZE = 256, BYTES = 210, LEVELS = 32;
    using Best = Symmetric<16, 16, Steps<-32, 31>, -128, 127>;
    static void encode(const Blocks<256> &in, Row *out);
    static void pack(const Stored<Best> &s, Row *out) {
        pack_nibbles<256, 64>(s.codes, out);
        pack_planes<256, 2, 4>(s.codes, out + 128);
        for (int g = 0; g < 16; g++) out[192 + g] = row(s.sc[g]);
        s.d.put(out + 208);
    }
};

struct IQ4_XS {
    static constexpr int SIZE = 256, BYTES = 136;
    using Best = Symmetric<32, 8, Codebook, -32, 31>;
    static void encode(const Blocks<256> &in, Row *out);
    static void pack(const Stored<Best> &s, Row *out) {
        Row sc[8];
        for (int g = 0; g < 8; g++) sc[g] = row(s.sc[g] + 32.0f);
        s.d.put(out);
        for (int g = 0; g < 2; g++)
            out[2 + g] = sc[4 * g] >> 4 | sc[4 * g + 1] >> 4 << 2 | sc[4 * g + 2] >> 4 << 4 | sc[4 * g + 3] >> 4 << 6;
        pack_nibbles<8, 1>(sc, out + 4);
        pack_nibbles<256, 16>(s.codes, out + 8);
    }
};

// Scales → whole numbers from `lowest`, which the one of largest magnitude gets, and d
template <int N>
inline F by_the_peak(const F *scales, float lowest, float least, F *sc) {
    F peak = signed_peak<N>(scales);
    I zero = magnitude(peak) < least;
    F inverse = F(lowest) / select(zero, 1.0f, peak);
    for (int g = 0; g < N; g++) sc[g] = select(zero, 0.0f, round_to(scales[g] * inverse, lowest, -lowest - 1));
    return select(zero, 0.0f, F(1.0f) / inverse);
}

// One rounding by the peak, then codes moved one at a time under the weights x² (make_q3_quants); returns the scale
inline F q3_plain(const F *x, Row *codes) {
    F peak = signed_peak<16>(x), w[16], found[16], lx, l2;
    I zero = magnitude(peak) < GROUP_MAX_EPS;
    F iscale = F(-4.0f) / select(zero, 1.0f, peak);
    for (int i = 0; i < 16; i++) w[i] = x[i] * x[i], found[i] = round_to(x[i] * iscale, -4.0f, 3.0f);
    improve_codes<16>(x, w, found, -4.0f, 3.0f, lx, l2);
    for (int i = 0; i < 16; i++) codes[i] = row(select(zero, 0.0f, found[i] + 4.0f));
    return select(zero, 0.0f, ratio(lx, l2));
}

// Searches each sub-block: scales, codes as stored, and the sums of the weights
template <class K>
inline void search(const Blocks<256> &in, const F *w, F *scales, Row *codes, F *sum_w) {
    constexpr float LEVELS = K::LEVELS;
    for (int g = 0; g < 16; g++) {
        auto fit = symmetric_search<16>(in.x + 16 * g, w + 16 * g, LEVELS);
        for (int i = 16 * g; i < 16 * g + 16; i++)
            codes[i] = row(select(fit.iscale == 0.0f, 0.0f, round_to(in.x[i] * fit.iscale, -LEVELS, LEVELS - 1) + LEVELS));
        scales[g] = fit.scale, sum_w[g] = sum<16>([&](int i) { return w[16 * g + i]; });
    }
}

// The codes under the stored scales; where such a scale is zero the codes of the search stay, as in ggml
template <class K>
inline void requantize(const Blocks<256> &in, Stored<typename K::Best> &s) {
    constexpr float LEVELS = K::LEVELS;
    for (int i = 0; i < 256; i++) {
        F scale = s.sc[i / 16] * s.d.number;
        s.codes[i] = select(scale == 0.0f, s.codes[i], row(round_to(in.x[i] / scale, -LEVELS, LEVELS - 1) + LEVELS));
    }
}

inline void Q6_K::encode(const Blocks<256> &in, Row *out) {
    Stored<Best> s;
    F w[256], scales[16], sum_w[16];
    for (int i = 0; i < 256; i++) w[i] = in.weighted ? in.importance[i] : in.x[i] * in.x[i];
    search<Q6_K>(in, w, scales, s.codes, sum_w);
    s.d = by_the_peak<16>(scales, -128.0f, GROUP_MAX_EPS, s.sc);
    requantize<Q6_K>(in, s);
    I empty = s.sc[0] == 0.0f;
    for (int g = 1; g < 16; g++) empty = empty & (s.sc[g] == 0.0f);
    for (int i = 0; i < 256; i++) s.codes[i] = select(empty, Row{}, s.codes[i]);
    if (in.best) s.improve(in);
    Q6_K::pack(s, out);
}

inline void Q3_K::encode(const Blocks<256> &in, Row *out) {
    Stored<Q3_K::Best> s;
    F w[256], scales[16], sum_w[16];
    if (in.weighted) {
        in.spread_importance(w, 2.0f);
        search<Q3_K>(in, w, scales, s.codes, sum_w);
        auto fit = symmetric_search<16>(scales, sum_w, 32.0f);
        s.d = fit.scale;
        for (int g = 0; g < 16; g++)
            s.sc[g] = select(fit.iscale == 0.0f, -32.0f, round_to(scales[g] * fit.iscale, -32.0f, 31.0f));
    } else {
        for (int g = 0; g < 16; g++) scales[g] = q3_plain(in.x + 16 * g, s.codes + 16 * g);
        F d = by_the_peak<16>(scales, -32.0f, 1e-45f, s.sc);
        for (int g = 0; g < 16; g++) s.sc[g] = select(d == 0.0f, -32.0f, s.sc[g]);
        s.d = d;
    }
    requantize<Q3_K>(in, s);
    if (in.best) s.improve(in);
    Q3_K::pack(s, out);
}

inline void IQ4_XS::encode(const Blocks<256> &in, Row *out) {
    Stored<IQ4_XS::Best> s;
    F w[256], scales[8];
    if (in.weighted) in.spread_importance(w, 2.0f);
    else
        for (int i = 0; i < 256; i++) w[i] = in.x[i] * in.x[i];
    for (int g = 0; g < 8; g++) scales[g] = codebook_search<32>(in.x + 32 * g, w + 32 * g);
    F d = signed_peak<8>(scales) / -32.0f, inverse = select(d == 0.0f, 0.0f, F(1.0f) / d);
    for (int g = 0; g < 8; g++) {
        s.sc[g] = round_to(scales[g] * inverse, -32.0f, 31.0f);
        F scale = d * s.sc[g];  // not of the float16 d: so ggml has it
        F iscale = select(scale == 0.0f, 0.0f, F(1.0f) / scale);
        for (int i = 32 * g; i < 32 * g + 32; i++) s.codes[i] = row(nearest_place(in.x[i] * iscale));
    }
    s.d = d;
    if (in.best) s.improve(in);
    IQ4_XS::pack(s, out);
}
