// LANES blocks as columns: loaded from the rows they stand in, and their bytes written back.
#pragma once
#include <utility>

#include "best.h"

typedef uint8_t Row __attribute__((vector_size(LANES)));  // one byte of each block

// the lowest byte of each number, and back; compilers would do it number by number
#if defined(__AVX512F__)
inline Row row(I x) {
    __m128i a = _mm512_cvtepi32_epi8((__m512i)x.a), b = _mm512_cvtepi32_epi8((__m512i)x.b);
    return (Row)_mm256_set_m128i(b, a);
}
inline F numbers(Row x) {
    __m128i a = _mm256_castsi256_si128((__m256i)x), b = _mm256_extracti128_si256((__m256i)x, 1);
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(a)), _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(b))};
}
#elif defined(__AVX2__)
inline Row row(I x) {
    x = x & 255;
    __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)x.a, (__m256i)x.b), 0xd8);
    return (Row)_mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
inline F numbers(Row x) {
    __m128i a = (__m128i)x, b = _mm_srli_si128(a, 8);
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(a)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b))};
}
#else
typedef uint8_t HalfRow __attribute__((vector_size(WIDTH)));
inline Row row(I x) {
    HalfRow halves[2] = {__builtin_convertvector(x.a, HalfRow), __builtin_convertvector(x.b, HalfRow)};
    Row found;
    memcpy(&found, halves, sizeof found);
    return found;
}
inline F numbers(Row x) {
    HalfRow halves[2];
    memcpy(halves, &x, sizeof x);
    return {__builtin_convertvector(__builtin_convertvector(halves[0], Ints), Floats),
            __builtin_convertvector(__builtin_convertvector(halves[1], Ints), Floats)};
}
#endif

// what stands before the point
inline Row row(F x) { return row(I{__builtin_convertvector(x.a, Ints), __builtin_convertvector(x.b, Ints)}); }

inline Row select(I mask, Row x, Row y) {
    Row m = row(mask);
    return (x & m) | (y & ~m);
}

// the nearest finite float16 of each block as two bytes, and as a number
struct Half {
    Row low, high;
    F number;
    Half(F x) : number(rounded16(x)) {
        I b = bits16(number);
        low = row(b), high = row(b >> 8);
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

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Mask{__VA_ARGS__})
#endif

// Number j of vector i for number i of vector j: the halves, quarters, … that stand crosswise change places
template <class Vector, class Mask, int STEP = 1, int... J>
inline void transpose(Vector *rows, std::integer_sequence<int, J...> lanes) {
    constexpr int N = sizeof...(J);
    if constexpr (STEP < N) {
#pragma GCC unroll 32
        for (int i = 0; i < N; i++)
            if (!(i & STEP)) {
                Vector a = rows[i], b = rows[i + STEP];
                rows[i] = SHUFFLE(a, b, (J & STEP ? N + J - STEP : J)...);
                rows[i + STEP] = SHUFFLE(a, b, (J & STEP ? N + J : J + STEP)...);
            }
        transpose<Vector, Mask, 2 * STEP>(rows, lanes);
    }
}

// vectors that stand anywhere; memcpy would be made of smaller pieces, which do not come back together fast
typedef float FloatsAnywhere __attribute__((vector_size(4 * WIDTH), aligned(1), may_alias));
typedef uint8_t RowAnywhere __attribute__((vector_size(LANES), aligned(1), may_alias));

template <int SIZE>
inline void load(const float *const rows[LANES], F *out) {
    auto half = [&](const float *const *from, int i, Floats *tile) {
#pragma GCC unroll 16
        for (int j = 0; j < WIDTH; j++) tile[j] = *reinterpret_cast<const FloatsAnywhere *>(from[j] + i);
        transpose<Floats, Ints>(tile, std::make_integer_sequence<int, WIDTH>());
    };
    for (int i = 0; i < SIZE; i += WIDTH) {
        Floats a[WIDTH], b[WIDTH];
        half(rows, i, a), half(rows + WIDTH, i, b);
#pragma GCC unroll 16
        for (int k = 0; k < WIDTH; k++) out[i + k] = {a[k], b[k]};
    }
}

// rows: as many as BYTES, rounded up to a multiple of LANES
template <int BYTES>
inline void store(const Row *rows, uint8_t *const out[LANES]) {
    constexpr int REST = BYTES % LANES, WHOLE = BYTES - REST;
    for (int i = 0; i < (REST > 4 ? BYTES : WHOLE); i += LANES) {
        Row tile[LANES];
#pragma GCC unroll 32
        for (int j = 0; j < LANES; j++) tile[j] = rows[i + j];
        transpose<Row, Row>(tile, std::make_integer_sequence<int, LANES>());
#pragma GCC unroll 32
        for (int j = 0; j < LANES; j++)
            if (i < WHOLE)
                *reinterpret_cast<RowAnywhere *>(out[j] + i) = tile[j];
            else
                memcpy(out[j] + i, &tile[j], REST);
    }
    if (REST <= 4)  // not worth turning
        for (int i = WHOLE; i < BYTES; i++)
            for (int j = 0; j < LANES; j++) out[j][i] = rows[i][j];
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
