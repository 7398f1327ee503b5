"""Writing the fields of ggml's blocks inside a Triton kernel; where they go is in ../ggml_layout.py.

Codes come as int32 tiles [C, N, 4] of ggml_columns, scales as [S, G]. `data` and `halves` point to the same bytes, as uint8 and
as int16: every type's blocks are a whole number of these, few of wider words.
"""

import triton
import triton.language as tl


@triton.jit
def words(codes):
    """[C, N, 4] → [C, N]: four bytes side by side."""
    return tl.sum(codes << (8 * tl.arange(0, 4))[None, None, :], axis=2)


@triton.jit
def store_words(halves, at, word, known):
    """Four bytes from byte `at`, an even number, on."""
    tl.store(halves + at // 2, word.to(tl.int16), mask=known)
    tl.store(halves + (at // 2 + 1), (word >> 16).to(tl.int16), mask=known)


@triton.jit
def store_half(halves, at, x, known):
    tl.store(halves + at // 2, x.to(tl.float16).to(tl.int16, bitcast=True), mask=known)


@triton.jit
def store_planes(
    halves, at, codes, known,
    SUB: tl.constexpr, A: tl.constexpr, PLANES: tl.constexpr, B: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Values of WIDTH bits from byte `at` [S] of each super-block on: sub-block (a·PLANES + p)·B + b, of SUB weights, has the
    bits p·WIDTH of bytes (a·B + b)·SUB on."""
    C: tl.constexpr = codes.shape[0]
    S: tl.constexpr = at.shape[0]
    shift = WIDTH * tl.arange(0, PLANES)
    merged = tl.sum(tl.reshape(words(codes), [C, S, A, PLANES, B]) << shift[None, None, None, :, None], axis=3)
    place = tl.arange(0, A)[:, None] * (B * SUB) + tl.arange(0, B)[None, :] * SUB
    place = tl.arange(0, C)[:, None, None, None] * 4 + place[None, None, :, :]
    store_words(halves, at[None, :, None, None] + place, merged, known[None, :, None, None])


@triton.jit
def store_nibbles(halves, at, codes, known):
    """Codes of N sub-blocks of 32 weights from byte `at` [N] on: the first 16 weights in the low nibbles."""
    pairs = tl.reshape(words(codes), [2, 4, codes.shape[1]])
    merged = tl.sum(pairs << (4 * tl.arange(0, 2))[:, None, None], axis=0)
    store_words(halves, at[None, :] + tl.arange(0, 4)[:, None] * 4, merged, known[None, :])


@triton.jit
def store_bit32(halves, at, bits, known):
    """Bits of N blocks of 32 weights as a little-endian uint32 at byte `at` [N]."""
    shift = tl.arange(0, 8)[:, None, None] * 4 + tl.arange(0, 4)[None, None, :]
    store_words(halves, at, tl.sum(tl.sum(bits << shift, axis=2), axis=0), known)


@triton.jit
def store_bytes(data, at, values, known):
    """[S, g] as bytes from byte `at` [S] on."""
    tl.store(data + (at[:, None] + tl.arange(0, values.shape[1])[None, :]), values.to(tl.uint8), mask=known[:, None])


@triton.jit
def store_scale_min(data, at, sc, m, known):
    """Eight 6-bit scales and minima of Q4_K and Q5_K in 12 bytes."""
    S: tl.constexpr = at.shape[0]
    sc, m = tl.reshape(sc, [S, 2, 4]), tl.reshape(m, [S, 2, 4])
    first = (tl.arange(0, 2) == 0)[None, :, None]
    store_bytes(data, at, tl.sum(tl.where(first, sc, (sc >> 4) << 6), axis=1), known)
    store_bytes(data, at + 4, tl.sum(tl.where(first, m, (m >> 4) << 6), axis=1), known)
    store_bytes(data, at + 8, tl.sum(tl.where(first, 0, (sc & 15) | ((m & 15) << 4)), axis=1), known)


@triton.jit
def store_q3_scales(data, at, sc, known):
    """Sixteen scales −32..31 in 12 bytes: nibbles of scales i and i + 8, then two bits of scales i, i + 4, i + 8, i + 12."""
    S: tl.constexpr = at.shape[0]
    sc += 32
    low = tl.reshape(sc & 15, [S, 2, 8]) << (4 * tl.arange(0, 2))[None, :, None]
    top = tl.reshape(sc >> 4, [S, 4, 4]) << (2 * tl.arange(0, 4))[None, :, None]
    store_bytes(data, at, tl.sum(low, axis=1), known)
    store_bytes(data, at + 8, tl.sum(top, axis=1), known)


@triton.jit
def store_iq4_scales(data, at, sc, known):
    """Eight scales −32..31: two bits of four neighbours in each of 2 bytes, then nibbles of two neighbours in each of 4."""
    S: tl.constexpr = at.shape[0]
    sc += 32
    top = tl.reshape(sc >> 4, [S, 2, 4]) << (2 * tl.arange(0, 4))[None, None, :]
    low = tl.reshape(sc & 15, [S, 4, 2]) << (4 * tl.arange(0, 2))[None, None, :]
    store_bytes(data, at, tl.sum(top, axis=2), known)
    store_bytes(data, at + 2, tl.sum(low, axis=2), known)
