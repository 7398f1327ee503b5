// The types with blocks of 32 weights (or 256, of three values) and one or two float16 scales. legacy.py and ternary.py are the
// definitions.
#pragma once
#include "plain.h"
#include "symmetric.h"

// a bit of each of 32 codes as the bytes of one little-endian number
template <int FROM>
inline void pack_bit32(const Row *codes, Row *out) {
    for (int i = 0; i < 4; i++) {
        out[i] = Row{};
        for (int bit = 0; bit < 8; bit++) out[i] |= (codes[8 * i + bit] >> uint8_t(FROM) & 1) << uint8_t(bit);
    }
}

inline F row_weight(const Blocks<32> &in, int i) { return root(in.x[i] * in.x[i] + in.row_square) * in.importance[i]; }

template <int N>
inline F largest(const F *x) {
    F peak = magnitude(x[0]);
    for (int i = 1; i < N; i++) peak = greater(magnitude(x[i]), peak);
    return peak;
}

// Q4_0 and Q5_0: by the entry of largest magnitude, with importance by a search
template <class Best>
inline void by_sign(const Blocks<32> &in, Stored<Best> &s) {
    constexpr float LEVELS = -Best::Grid::LOW;
    if (in.weighted) {
        F w[32];
        for (int i = 0; i < 32; i++) w[i] = row_weight(in, i);
        auto fit = symmetric_search<32>(in.x, w, LEVELS);
        I zero = fit.iscale == 0.0f;
        s.d = fit.scale;
        for (int i = 0; i < 32; i++)
            s.codes[i] = row(select(zero, 0.0f, round_to(in.x[i] * fit.iscale, -LEVELS, LEVELS - 1) + LEVELS));
    } else {
        F d = signed_peak<32>(in.x) / -LEVELS, iscale = inverse(d);
        s.d = d;
        for (int i = 0; i < 32; i++) s.codes[i] = row(clamp(in.x[i] * iscale + (LEVELS + 0.5f), 0.0f, 2 * LEVELS - 1));
    }
    if (in.best) s.improve(in);
}

struct Q4_0 {
    using Plain = Q4_0Block;  // without importance
    static constexpr int SIZE = 32, BYTES = 18;
    static void encode(const Blocks<32> &in, Row *out) {
        Stored<Symmetric<32, 1, Steps<-8, 7>, 0, 0>> s;
        by_sign(in, s);
        s.d.put(out), pack_nibbles<32, 16>(s.codes, out + 2);
    }
};

struct Q5_0 {
    static constexpr int SIZE = 32, BYTES = 22;
    static void encode(const Blocks<32> &in, Row *out) {
        Stored<Symmetric<32, 1, Steps<-16, 15>, 0, 0>> s;
        by_sign(in, s);
        s.d.put(out), pack_bit32<4>(s.codes, out + 2), pack_nibbles<32, 16>(s.codes, out + 6);
    }
};

struct Q8_0 {
    using Plain = Q8_0Block;
    static constexpr int SIZE = 32, BYTES = 34;
    static void encode(const Blocks<32> &in, Row *out) {
        Stored<Symmetric<32, 1, Steps<-127, 127>, 0, 0>> s;
        F d = largest<32>(in.x) / 127.0f, iscale = inverse(d);
        s.d = d;
        for (int i = 0; i < 32; i++) s.codes[i] = row(round_away(in.x[i] * iscale)) + 127;
        if (in.best) s.improve(in);
        s.d.put(out);
        for (int i = 0; i < 32; i++) out[2 + i] = s.codes[i] - 127;
    }
};

struct IQ4_NL {
    static constexpr int SIZE = 32, BYTES = 18;
    static void encode(const Blocks<32> &in, Row *out) {
        Stored<Symmetric<32, 1, Codebook, 0, 0>> s;
        F w[32], squares = sum<32>([&](int i) { return in.x[i] * in.x[i]; }) * 2.0f / 32.0f;
        for (int i = 0; i < 32; i++) {
            F square = in.x[i] * in.x[i];
            w[i] = in.weighted ? root(square + squares) * in.importance[i] : square;
        }
        F scale = codebook_search<32>(in.x, w), iscale = select(scale == 0.0f, 0.0f, F(1.0f) / scale);
        s.d = scale;
        for (int i = 0; i < 32; i++) s.codes[i] = row(nearest_place(in.x[i] * iscale));
        if (in.best) s.improve(in);
        s.d.put(out), pack_nibbles<32, 16>(s.codes, out + 2);
    }
};

// Q4_1 and Q5_1: by the range, with importance by a search. What is stored is the lower end, not the minimum that is subtracted
template <class Best>
inline void by_range(const Blocks<32> &in, Row *scales, Row *codes) {
    constexpr float LEVELS = Best::LEVELS;
    F w[32];
    Half d = F(0.0f), low = F(0.0f);
    if (in.weighted) {
        for (int i = 0; i < 32; i++) w[i] = row_weight(in, i);
        F sum_w = sum<32>([&](int i) { return w[i]; });
        auto fit = affine_search<32, false>(in.x, w, sum_w, LEVELS, -0.9f, 0.05f, 36);
        d = fit.scale, low = -fit.minimum;
        for (int i = 0; i < 32; i++) codes[i] = row(round_to((in.x[i] - fit.origin) * fit.iscale, 0.0f, LEVELS));
    } else {
        F least = in.x[0], most = in.x[0];
        for (int i = 1; i < 32; i++) least = less(in.x[i], least), most = greater(in.x[i], most);
        F step = (most - least) / LEVELS, iscale = inverse(step);
        d = step, low = least;
        for (int i = 0; i < 32; i++) codes[i] = row(clamp((in.x[i] - least) * iscale + 0.5f, 0.0f, LEVELS));
    }
    if (in.best) {
        in.floor_importance(w);
        Best best(in.x, w, in.trials);
        F old_error = sum_by_16<32>([&](int i) {
            F difference = in.x[i] - low.number - numbers(codes[i]) * d.number;
            return difference * difference * w[i];
        });
        F error;
        auto found = best.best(error);
        I better = error < old_error;
        d = select(better, found.d, d.number), low = select(better, -found.dmin, low.number);
        for (int i = 0; i < 32; i++) codes[i] = select(better, row(best.rounded(found, 0, i)), codes[i]);
    }
    d.put(scales), low.put(scales + 2);
}

struct Q4_1 {
    static constexpr int SIZE = 32, BYTES = 20;
    static void encode(const Blocks<32> &in, Row *out) {
        Row codes[32];
        by_range<Affine<32, 1, 15, 1>>(in, out, codes);
        pack_nibbles<32, 16>(codes, out + 4);
    }
};

struct Q5_1 {
    static constexpr int SIZE = 32, BYTES = 24;
    static void encode(const Blocks<32> &in, Row *out) {
        Row codes[32];
        by_range<Affine<32, 1, 31, 1>>(in, out, codes);
        pack_bit32<4>(codes, out + 4), pack_nibbles<32, 16>(codes, out + 8);
    }
};

using Ternary = Stored<Symmetric<256, 1, Steps<-1, 1>, 0, 0>>;

inline void by_magnitude(const Blocks<256> &in, Ternary &s) {
    F d = largest<256>(in.x), iscale = inverse(d);
    s.d = d;
    for (int i = 0; i < 256; i++) s.codes[i] = row(round_away(in.x[i] * iscale)) + 1;
    if (in.best) s.improve(in);
}

// five codes in a byte, as a fraction of 3⁵ in 256ths, rounded up
struct TQ1_0 {
    static constexpr int SIZE = 256, BYTES = 54;
    static void encode(const Blocks<256> &in, Row *out) {
        Ternary s;
        by_magnitude(in, s);
        int at = 0;
        for (auto [start, run, digits] : {Run{0, 32, 5}, {160, 16, 5}, {240, 4, 4}})
            for (int i = 0; i < run; i++) {
                F value = 0.0f;
                for (int digit = 0; digit < 5; digit++)
                    value = value * 3.0f + (digit < digits ? numbers(s.codes[start + digit * run + i]) : F(0.0f));
                out[at++] = row((value * 256.0f + 242.0f) / 243.0f);
            }
        s.d.put(out + 52);
    }
    struct Run {
        int start, run, digits;
    };
};

struct TQ2_0 {
    static constexpr int SIZE = 256, BYTES = 66;
    static void encode(const Blocks<256> &in, Row *out) {
        Ternary s;
        by_magnitude(in, s);
        pack_planes<256, 2, 0>(s.codes, out);
        s.d.put(out + 64);
    }
};
