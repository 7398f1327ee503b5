// LANES numbers side by side: number j is of block j. Two registers each, so that two sums can be under way at once.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#ifdef __SSE__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
constexpr int LANES = 2 * WIDTH;

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));

// y where x is no number; compilers do not find the instruction
#if defined(__AVX512F__)
inline Floats greater(Floats x, Floats y) { return _mm512_max_ps(x, y); }
inline Floats less(Floats x, Floats y) { return _mm512_min_ps(x, y); }
#elif defined(__AVX__)
inline Floats greater(Floats x, Floats y) { return _mm256_max_ps(x, y); }
inline Floats less(Floats x, Floats y) { return _mm256_min_ps(x, y); }
#elif defined(__SSE__)
inline Floats greater(Floats x, Floats y) { return _mm_max_ps(x, y); }
inline Floats less(Floats x, Floats y) { return _mm_min_ps(x, y); }
#else
inline Floats greater(Floats x, Floats y) { return x > y ? x : y; }
inline Floats less(Floats x, Floats y) { return x < y ? x : y; }
#endif

// nor these, of numbers with and without a sign
#if defined(__AVX512F__)
inline Ints greater(Ints x, Ints y) { return (Ints)_mm512_max_epi32((__m512i)x, (__m512i)y); }
inline Ints greater_unsigned(Ints x, Ints y) { return (Ints)_mm512_max_epu32((__m512i)x, (__m512i)y); }
#elif defined(__AVX2__)
inline Ints greater(Ints x, Ints y) { return (Ints)_mm256_max_epi32((__m256i)x, (__m256i)y); }
inline Ints greater_unsigned(Ints x, Ints y) { return (Ints)_mm256_max_epu32((__m256i)x, (__m256i)y); }
#else
inline Ints greater(Ints x, Ints y) { return x > y ? x : y; }
inline Ints greater_unsigned(Ints x, Ints y) { return (x ^ INT32_MIN) > (y ^ INT32_MIN) ? x : y; }
#endif

struct I {  // whole numbers, or a mask: all bits of a lane or none
    Ints a, b;
};

struct F {
    Floats a, b;
    F() = default;
    F(Floats a, Floats b) : a(a), b(b) {}
    F(float x) : a(x - Floats{}), b(x - Floats{}) {}
};

inline F operator+(F x, F y) { return {x.a + y.a, x.b + y.b}; }
inline F operator-(F x, F y) { return {x.a - y.a, x.b - y.b}; }
inline F operator*(F x, F y) { return {x.a * y.a, x.b * y.b}; }
inline F operator/(F x, F y) { return {x.a / y.a, x.b / y.b}; }
inline F operator-(F x) { return {-x.a, -x.b}; }
inline I operator<(F x, F y) { return {x.a < y.a, x.b < y.b}; }
inline I operator>(F x, F y) { return {x.a > y.a, x.b > y.b}; }
inline I operator>=(F x, F y) { return {x.a >= y.a, x.b >= y.b}; }
inline I operator==(F x, F y) { return {x.a == y.a, x.b == y.b}; }
inline I operator!=(F x, F y) { return {x.a != y.a, x.b != y.b}; }
inline I operator&(I x, I y) { return {x.a & y.a, x.b & y.b}; }
inline I operator|(I x, I y) { return {x.a | y.a, x.b | y.b}; }
inline I operator+(I x, I y) { return {x.a + y.a, x.b + y.b}; }
inline I operator&(I x, int32_t y) { return {x.a & y, x.b & y}; }
inline I operator+(I x, int32_t y) { return {x.a + y, x.b + y}; }
inline I operator-(I x, int32_t y) { return {x.a - y, x.b - y}; }
inline I operator>(I x, I y) { return {x.a > y.a, x.b > y.b}; }
inline I operator==(I x, I y) { return {x.a == y.a, x.b == y.b}; }
inline I operator!=(I x, I y) { return {x.a != y.a, x.b != y.b}; }
inline I operator>>(I x, int n) { return {x.a >> n, x.b >> n}; }

inline F select(I mask, F x, F y) { return {mask.a ? x.a : y.a, mask.b ? x.b : y.b}; }
inline I select(I mask, I x, I y) { return {mask.a ? x.a : y.a, mask.b ? x.b : y.b}; }
inline F greater(F x, F y) { return {greater(x.a, y.a), greater(x.b, y.b)}; }
inline F less(F x, F y) { return {less(x.a, y.a), less(x.b, y.b)}; }
inline I greater(I x, I y) { return {greater(x.a, y.a), greater(x.b, y.b)}; }
inline I greater_unsigned(I x, I y) { return {greater_unsigned(x.a, y.a), greater_unsigned(x.b, y.b)}; }
inline F clamp(F x, float low, float high) { return less(greater(x, low), high); }
inline I bits(F x) { return {(Ints)x.a, (Ints)x.b}; }
inline F floats(I x) { return {(Floats)x.a, (Floats)x.b}; }
inline I magnitude_bits(F x) { return bits(x) & 0x7fffffff; }  // which are in the order of magnitudes, what is no number last
inline F magnitude(F x) { return floats(magnitude_bits(x)); }

// to whole numbers, halves to even, for magnitudes below 2²²
inline F rounded(F x) { return (x + 12582912.0f) - 12582912.0f; }

// to be truncated: C's roundf, halves away from zero. The number is the one before a half
inline F round_away(F x) { return x + floats((bits(x) & INT32_MIN) | bits(F(0.49999997f))); }

inline F root(F x) {
    float of[LANES];
    memcpy(of, &x, sizeof of);
    for (int j = 0; j < LANES; j++) of[j] = sqrtf(of[j]);
    memcpy(&x, of, sizeof of);
    return x;
}

// x·y + z rounded once
inline F fused(F x, F y, F z) {
    float a[LANES], b[LANES], c[LANES];
    memcpy(a, &x, sizeof a), memcpy(b, &y, sizeof b), memcpy(c, &z, sizeof c);
    for (int j = 0; j < LANES; j++) c[j] = fmaf(a[j], b[j], c[j]);
    memcpy(&z, c, sizeof c);
    return z;
}

inline bool any(I mask) {
    int32_t of[LANES], found = 0;
    memcpy(of, &mask, sizeof of);
    for (int j = 0; j < LANES; j++) found |= of[j];
    return found != 0;
}

// the nearest finite float16
inline F rounded16(F x) {
    x = clamp(x, -65504.0f, 65504.0f);
    I b = bits(x), up = (b >> 13) & 1;
    F normal = floats((b + up + 0xfff) & ~0x1fff);
    F size = magnitude(x), subnormal = (size + 0.5f) - 0.5f;  // multiples of 2⁻²⁴
    return select(size < 6.103515625e-5f, floats(bits(subnormal) | (b & INT32_MIN)), normal);
}

// the bits of a number that is a float16
inline I bits16(F x) {
    F size = magnitude(x), scaled = size * 16777216.0f;
    I subnormal = {__builtin_convertvector(scaled.a, Ints), __builtin_convertvector(scaled.b, Ints)};
    I found = select(size < 6.103515625e-5f, subnormal, (bits(size) >> 13) - (112 << 10));
    return found | ((bits(x) >> 16) & 0x8000);
}
