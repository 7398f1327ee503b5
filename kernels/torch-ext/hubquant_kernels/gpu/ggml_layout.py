"""Reading the fields of ggml's blocks inside a Triton kernel: `decode` gives the weights of some blocks as a tile.

Layouts and the order of operations are those of ../ggml_layout.py and ../ggml_dequantize.py. Codes are read as words of
`UNIT` bytes (4 where blocks are a multiple of 4 bytes, 2 elsewhere), scales byte by byte.
"""

import triton
import triton.language as tl

from ..ggml_types import GGML_TYPES

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
UNITS = {name: 2 if GGML_TYPES[name].type_size % 4 else 4 for name in TYPES}


@triton.jit
def code_bytes(words, block, SIZE: tl.constexpr, UNIT: tl.constexpr, OFFSET: tl.constexpr, COUNT: tl.constexpr):
    """COUNT bytes (a power of 2) from OFFSET on of blocks [R], as int32 [R, COUNT]."""
    at = block[:, None] * (SIZE // UNIT) + OFFSET // UNIT + tl.arange(0, COUNT // UNIT)[None, :]
    word = tl.load(words + at).to(tl.int32)
    shift = 8 * tl.arange(0, UNIT)
    return tl.reshape((word[:, :, None] >> shift[None, None, :]) & 255, [block.shape[0], COUNT])


@triton.jit
def planes(data, COUNT: tl.constexpr, RUN: tl.constexpr, WIDTH: tl.constexpr):
    """Bytes [R, COUNT] → values of WIDTH bits [R, COUNT·8/WIDTH]: of RUN bytes first the lowest bits of each, then the next."""
    R: tl.constexpr = data.shape[0]
    shift = WIDTH * tl.arange(0, 8 // WIDTH)
    runs = tl.reshape(data, [R, COUNT // RUN, 1, RUN])
    return tl.reshape((runs >> shift[None, None, :, None]) & ((1 << WIDTH) - 1), [R, COUNT * 8 // WIDTH])


@triton.jit
def half(halves, block, SIZE: tl.constexpr, OFFSET: tl.constexpr):
    return tl.load(halves + block * (SIZE // 2) + OFFSET // 2).to(tl.float32)


@triton.jit
def byte(data, at, place):
    """Byte `place` [g] of blocks that begin at bytes `at` [R, 1 or g], as int32 [R, g]."""
    return tl.load(data + (at + place[None, :])).to(tl.int32)


@triton.jit
def scale_min(data, at, g):
    """The 6-bit scales and minima of sub-blocks g [G] of Q4_K and Q5_K, [R, G] each."""
    low, middle, high = byte(data, at, 4 + g % 4), byte(data, at, 8 + g % 4), byte(data, at, 12 + g % 4)
    first = (g < 4)[None, :]
    sc = tl.where(first, low & 63, (high & 15) | ((low >> 6) << 4))
    m = tl.where(first, middle & 63, (high >> 4) | ((middle >> 6) << 4))
    return sc.to(tl.float32), m.to(tl.float32)


@triton.jit
def scales(data, at, g, TYPE: tl.constexpr):
    """The signed scales of sub-blocks g [G] of Q3_K, Q6_K and IQ4_XS, [R, G]."""
    if TYPE == "Q6_K":
        sc = byte(data, at, 192 + g)
        sc = (sc ^ 128) - 128
    elif TYPE == "Q3_K":
        low, top = byte(data, at, 96 + g % 8), byte(data, at, 104 + g % 4)
        sc = (((low >> (g // 8 * 4)[None, :]) & 15) | (((top >> (g // 4 * 2)[None, :]) & 3) << 4)) - 32
    else:
        low, top = byte(data, at, 4 + g // 2), byte(data, at, 2 + g // 4)
        sc = (((low >> (g % 2 * 4)[None, :]) & 15) | (((top >> (g % 4 * 2)[None, :]) & 3) << 4)) - 32
    return sc.to(tl.float32)


@triton.jit
def codebook_value(place):
    """Values of ../ggml_codebook.py at places 0..15: four words hold their bytes."""
    low = tl.where((place & 4) != 0, -152379953, -1079142271)
    high = tl.where((place & 4) != 0, 1901675829, 639175937)
    word = tl.where((place & 8) != 0, high, low)
    return ((word << (24 - (place & 3) * 8)) >> 24).to(tl.float32)


@triton.jit
def spread(x, SIZE: tl.constexpr):
    """[R, g] → [R, g·SIZE]: each for the weights of its sub-block."""
    R: tl.constexpr = x.shape[0]
    G: tl.constexpr = x.shape[1]
    return tl.reshape(tl.broadcast_to(x[:, :, None], [R, G, SIZE]), [R, G * SIZE])


@triton.jit
def small_block(words, halves, block, TYPE: tl.constexpr, SIZE: tl.constexpr, UNIT: tl.constexpr):
    """Weights [R, 32] of the types with blocks of 32."""
    d = half(halves, block, SIZE, 0)[:, None]
    if TYPE == "Q8_0":
        codes = code_bytes(words, block, SIZE, UNIT, 2, 32)
    else:
        codes = planes(code_bytes(words, block, SIZE, UNIT, SIZE - 16, 16), 16, 16, 4)
    if TYPE == "Q5_0" or TYPE == "Q5_1":
        codes |= planes(code_bytes(words, block, SIZE, UNIT, SIZE - 20, 4), 4, 1, 1) << 4
    if TYPE == "Q8_0":
        weight = d * ((codes ^ 128) - 128).to(tl.float32)
    elif TYPE == "IQ4_NL":
        weight = d * codebook_value(codes)
    elif TYPE == "Q4_0":
        weight = d * (codes - 8).to(tl.float32)
    elif TYPE == "Q5_0":
        weight = d * (codes - 16).to(tl.float32)
    else:
        weight = d * codes.to(tl.float32) + half(halves, block, SIZE, 2)[:, None]
    return weight


@triton.jit
def large_codes(words, block, TYPE: tl.constexpr, SIZE: tl.constexpr, UNIT: tl.constexpr):
    """Codes [R, 256] of the types with super-blocks of 256, as they are stored."""
    if TYPE == "Q4_K":
        codes = planes(code_bytes(words, block, SIZE, UNIT, 16, 128), 128, 32, 4)
    elif TYPE == "Q5_K":
        codes = planes(code_bytes(words, block, SIZE, UNIT, 48, 128), 128, 32, 4)
        codes |= planes(code_bytes(words, block, SIZE, UNIT, 16, 32), 32, 32, 1) << 4
    elif TYPE == "Q6_K":
        codes = planes(code_bytes(words, block, SIZE, UNIT, 0, 128), 128, 64, 4)
        codes |= planes(code_bytes(words, block, SIZE, UNIT, 128, 64), 64, 32, 2) << 4
    elif TYPE == "Q2_K":
        codes = planes(code_bytes(words, block, SIZE, UNIT, 16, 64), 64, 32, 2)
    elif TYPE == "Q3_K":
        codes = planes(code_bytes(words, block, SIZE, UNIT, 32, 64), 64, 32, 2)
        codes |= planes(code_bytes(words, block, SIZE, UNIT, 0, 32), 32, 32, 1) << 2
    else:
        codes = planes(code_bytes(words, block, SIZE, UNIT, 8, 128), 128, 16, 4)
    return codes


@triton.jit
def large_block(data, words, halves, block, TYPE: tl.constexpr, SIZE: tl.constexpr, UNIT: tl.constexpr):
    """Weights [R, 256] of the types with super-blocks of 256."""
    codes = large_codes(words, block, TYPE, SIZE, UNIT)
    at = block[:, None] * SIZE
    if TYPE == "Q4_K" or TYPE == "Q5_K":
        d, dmin = half(halves, block, SIZE, 0)[:, None], half(halves, block, SIZE, 2)[:, None]
        sc, m = scale_min(data, at, tl.arange(0, 8))
        weight = spread(d * sc, 32) * codes.to(tl.float32) - spread(dmin * m, 32)
    elif TYPE == "Q2_K":
        d, dmin = half(halves, block, SIZE, 80)[:, None], half(halves, block, SIZE, 82)[:, None]
        both = byte(data, at, tl.arange(0, 16))
        scale, minimum = d * (both & 15).to(tl.float32), dmin * (both >> 4).to(tl.float32)
        weight = spread(scale, 16) * codes.to(tl.float32) - spread(minimum, 16)
    elif TYPE == "Q6_K":
        weight = spread(half(halves, block, SIZE, 208)[:, None] * scales(data, at, tl.arange(0, 16), TYPE), 16) * (codes - 32).to(
            tl.float32
        )
    elif TYPE == "Q3_K":
        weight = spread(half(halves, block, SIZE, 108)[:, None] * scales(data, at, tl.arange(0, 16), TYPE), 16) * (codes - 4).to(
            tl.float32
        )
    else:
        weight = spread(half(halves, block, SIZE, 0)[:, None] * scales(data, at, tl.arange(0, 8), TYPE), 32) * codebook_value(codes)
    return weight


@triton.jit
def decode(data, words, halves, block, TYPE: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr, UNIT: tl.constexpr):
    """Weights, float32 [R, BLOCK], of the blocks whose numbers are `block` [R].

    `data`, `words` and `halves` point to the same bytes, as uint8, as words of UNIT bytes and as float16.
    """
    if BLOCK == 32:
        weight = small_block(words, halves, block, TYPE, SIZE, UNIT)
    else:
        weight = large_block(data, words, halves, block, TYPE, SIZE, UNIT)
    return weight
