// Types of which a block of 32 is so little work that turning blocks into columns would take most of it: here an F is LANES weights
// of one block, and only what makes its scale is turned.
#pragma once
#include "blocks.h"

constexpr int PARTS = 32 / LANES;

inline F part_of(const float *x, int part) {
    auto at = [&](int i) -> Floats { return *reinterpret_cast<const FloatsAnywhere *>(x + part * LANES + i); };
    return {at(0), at(WIDTH)};
}

// number j: what `pick` leaves of the weights of block j
template <class Pick>
inline F of_each(const float *x, Pick pick) {
    auto half = [&](const float *from) {
        Floats tile[WIDTH];
        for (int j = 0; j < WIDTH; j++) {
            F found = part_of(from + j * 32, 0);
            for (int part = 1; part < PARTS; part++) found = pick(found, part_of(from + j * 32, part));
            tile[j] = pick(found, F(found.b, found.a)).a;
        }
        transpose<Floats, Ints>(tile, std::make_integer_sequence<int, WIDTH>());
        F found = {tile[0], tile[0]};
        for (int j = 1; j < WIDTH; j++) found = pick(found, F(tile[j], tile[j]));
        return found.a;
    };
    return {half(x), half(x + WIDTH * 32)};
}

inline void put(Row codes, uint8_t *out) { *reinterpret_cast<RowAnywhere *>(out) = codes; }

typedef uint8_t Sixteen __attribute__((vector_size(16)));

// `step`: the scale of each block, from its largest magnitude, which is also given: NaN where the block contains one
struct Q8_0Block {
    static F step(const float *x, I &largest) {
        largest = bits(of_each(x, [](F a, F b) { return floats(greater(magnitude_bits(a), magnitude_bits(b))); }));
        return floats(largest) / 127.0f;
    }
    static void codes(const float *x, float iscale, uint8_t *out) {
        for (int part = 0; part < PARTS; part++) put(row(round_away(part_of(x, part) * iscale)), out + part * LANES);
    }
};

struct Q4_0Block {
    // As whole numbers with a sign, the positive float of largest magnitude comes last (where there is none, the negative one);
    // without a sign, the negative one
    static F step(const float *x, I &largest) {
        I plus = bits(of_each(x, [](F a, F b) { return floats(greater(bits(a), bits(b))); }));
        I minus = bits(of_each(x, [](F a, F b) { return floats(greater_unsigned(bits(a), bits(b))); }));
        I above = plus & INT32_MAX, below = minus & INT32_MAX;
        largest = greater(above, below);
        F peak = floats(select(above > below, plus, minus));
        if (any((above == below) & (plus != minus))) {  // the first of them
            float of[LANES];
            memcpy(of, &peak, sizeof of);
            for (int j = 0; j < LANES; j++)
                for (int i = 31; i >= 0; i--)
                    if (fabsf(x[j * 32 + i]) == fabsf(of[j])) of[j] = x[j * 32 + i];
            memcpy(&peak, of, sizeof of);
        }
        return peak / -8.0f;
    }
    static void codes(const float *x, float iscale, uint8_t *out) {
        uint8_t code[32];
        for (int part = 0; part < PARTS; part++)
            put(row(clamp(part_of(x, part) * iscale + 8.5f, 0.0f, 15.0f)), code + part * LANES);
        Sixteen low, high;
        memcpy(&low, code, 16), memcpy(&high, code + 16, 16);
        low |= high << uint8_t(4);
        memcpy(out, &low, 16);
    }
};

// returns the largest magnitude of all
template <class Block, int BYTES>
inline I encode_blocks(const float *x, int64_t n_blocks, uint8_t *out) {
    float last[LANES * 32] = {}, iscales[LANES];
    I largest{};
    for (int64_t start = 0; start < n_blocks; start += LANES, x += LANES * 32) {
        int n = int(n_blocks - start < LANES ? n_blocks - start : LANES);
        if (n < LANES) x = static_cast<const float *>(memcpy(last, x, n * 32 * sizeof *x));
        I here;
        F d = Block::step(x, here), iscale = inverse(d);
        largest = greater(largest, here);
        memcpy(iscales, &iscale, sizeof iscales);
        Half half = d;
        for (int j = 0; j < n; j++, out += BYTES) {
            out[0] = half.low[j], out[1] = half.high[j];
            Block::codes(x + j * 32, iscales[j], out + 2);
        }
    }
    return largest;
}
