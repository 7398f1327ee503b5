// LANES blocks as columns: loaded from the rows they stand in, and their bytes written back.
#pragma once
#include "best.h"

typedef uint8_t Row __attribute__((vector_size(LANES)));  // one byte of each block

inline Row row(F x) {
    typedef uint8_t Half __attribute__((vector_size(WIDTH)));
    Half halves[2] = {__builtin_convertvector(__builtin_convertvector(x.a, Ints), Half),
                      __builtin_convertvector(__builtin_convertvector(x.b, Ints), Half)};
    Row found;
    memcpy(&found, halves, sizeof found);
    return found;
}

inline F numbers(Row x) {
    typedef uint8_t Half __attribute__((vector_size(WIDTH)));
    Half halves[2];
    memcpy(halves, &x, sizeof x);
    return {__builtin_convertvector(__builtin_convertvector(halves[0], Ints), Floats),
            __builtin_convertvector(__builtin_convertvector(halves[1], Ints), Floats)};
}

inline Row select(I mask, Row x, Row y) {
    Row m = row(select(mask, F(255.0f), F(0.0f)));
    return (x & m) | (y & ~m);
}

// the nearest finite float16 of each block as two bytes, and back as numbers
struct Half {
    Row low, high;
    F number;
    Half(F x) : number(rounded16(x)) {
        I b = bits16(number);
        F l = {__builtin_convertvector((b & 255).a, Floats), __builtin_convertvector((b & 255).b, Floats)};
        F h = {__builtin_convertvector((b >> 8).a, Floats), __builtin_convertvector((b >> 8).b, Floats)};
        low = row(l), high = row(h);
    }
    void put(Row *out) const { out[0] = low, out[1] = high; }
};

template <int SIZE>
struct Blocks {
    F x[SIZE], importance[SIZE], row_square;
    bool weighted, best;
    Trials trials;

    // the weights of the squared error: at least 10⁻⁸ of the block's mean, so that no weight is forgotten
    void floor_importance(F *w) const {
        if (!weighted) {
            for (int i = 0; i < SIZE; i++) w[i] = 1.0f;
            return;
        }
        F mean = sum_by_16<SIZE>([&](int i) { return importance[i]; }) / float(SIZE), least = mean * 1e-8f;
        I none = mean > 0.0f;
        for (int i = 0; i < SIZE; i++) w[i] = select(none, greater(importance[i], least), 1.0f);
    }

    // ggml's weights with importance, importance·√(spread·mean(x²) + x²)
    void spread_importance(F *w, float spread) const {
        F sigma2 = spread * (sum<SIZE>([&](int i) { return x[i] * x[i]; }) / float(SIZE));
        for (int i = 0; i < SIZE; i++) w[i] = root(x[i] * x[i] + sigma2) * importance[i];
    }
};

template <int SIZE>
inline void load(const float *const rows[LANES], F *out) {
    float *to = reinterpret_cast<float *>(out);
    for (int j = 0; j < LANES; j++)
        for (int i = 0; i < SIZE; i++) to[i * LANES + j] = rows[j][i];
}

template <int BYTES>
inline void store(const Row *rows, uint8_t *const out[LANES]) {
    const uint8_t *from = reinterpret_cast<const uint8_t *>(rows);
    for (int j = 0; j < LANES; j++)
        for (int i = 0; i < BYTES; i++) out[j][i] = from[i * LANES + j];
}

// codes 0..15: in each 2·RUN of them the first RUN take the low nibbles, the others the high ones
template <int N, int RUN>
inline void pack_nibbles(const Row *codes, Row *out) {
    for (int start = 0; start < N; start += 2 * RUN)
        for (int i = 0; i < RUN; i++) out[start / 2 + i] = (codes[start + i] & 15) | (codes[start + RUN + i] << 4);
}

// `WIDTH_` bits from bit FROM of each code: in each 256/WIDTH_ codes eight (or fewer) runs of 32, one above the other
template <int N, int WIDTH_, int FROM>
inline void pack_planes(const Row *codes, Row *out) {
    constexpr int PLANES = 8 / WIDTH_;
    constexpr uint8_t FIRST = FROM, MASK = (1 << WIDTH_) - 1;
    for (int start = 0; start < N; start += PLANES * 32)
        for (int i = 0; i < 32; i++) {
            Row bits{};
            for (int plane = 0; plane < PLANES; plane++)
                bits |= (codes[start + plane * 32 + i] >> FIRST & MASK) << uint8_t(plane * WIDTH_);
            out[start / PLANES + i] = bits;
        }
}
