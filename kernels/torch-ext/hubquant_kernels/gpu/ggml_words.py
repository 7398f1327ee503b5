"""ggml's blocks word by word: the same bits of each byte of a word are four neighbouring weights of one sub-block.

So a product needs no weight to move: codes are multiplied where they lie, and a sub-block's scale comes in once per word. Of a
type of WIDTH bits (its low bits, where others lie apart) a byte holds PLANES = 8/WIDTH codes, RUN weights apart.
"""

import triton
import triton.language as tl

from .ggml_layout import byte, codebook_value, scale_min, scales

# by type: bits of a code, of these in a byte of the low ones, weights that one plane of bytes holds in a row, where the bytes
# begin, sub-block
SHAPES = {
    "Q4_0": (4, 4, 16, 2, 32),
    "Q4_1": (4, 4, 16, 4, 32),
    "Q5_0": (5, 4, 16, 6, 32),
    "Q5_1": (5, 4, 16, 8, 32),
    "Q8_0": (8, 8, 32, 2, 32),
    "IQ4_NL": (4, 4, 16, 2, 32),
    "Q2_K": (2, 2, 32, 16, 16),
    "Q3_K": (3, 2, 32, 32, 16),
    "Q4_K": (4, 4, 32, 16, 32),
    "Q5_K": (5, 4, 32, 48, 32),
    "Q6_K": (6, 4, 64, 0, 16),
    "IQ4_XS": (4, 4, 16, 8, 32),
}


def mantissa_mask(type_name: str) -> int:
    """The highest bits of a float32's mantissa, as many as a code of the type has."""
    bits = SHAPES[type_name][0]
    return ((1 << bits) - 1) << (23 - bits)


@triton.jit
def load_word(words, at, UNIT: tl.constexpr):
    """Four bytes from byte `at` on, which is a multiple of UNIT."""
    if UNIT == 4:
        word = tl.load(words + at // 4)
    else:
        low, high = tl.load(words + at // 2).to(tl.int32), tl.load(words + (at // 2 + 1)).to(tl.int32)
        word = (low & 0xFFFF) | (high << 16)
    return word


@triton.jit
def load_high(words, at, k, UNIT: tl.constexpr, TYPE: tl.constexpr):
    """The bits beyond the low ones of weights k.. k + 3 of blocks that begin at bytes `at`: four bits wide, one byte each.

    Where there are none, zeros.
    """
    if TYPE == "Q5_K":
        high = ((load_word(words, at + (16 + k % 32), UNIT) >> (k // 32)) & 0x01010101) << 4
    elif TYPE == "Q6_K":
        high = ((load_word(words, at + (128 + k // 128 * 32 + k % 32), UNIT) >> (k // 32 % 4 * 2)) & 0x03030303) << 4
    elif TYPE == "Q3_K":
        high = ((load_word(words, at + k % 32, UNIT) >> (k // 32)) & 0x01010101) << 2
    else:
        bits = load_word(words, at + (2 if TYPE == "Q5_0" else 4), UNIT) >> k
        high = ((bits & 1) | ((bits & 2) << 7) | ((bits & 4) << 14) | ((bits & 8) << 21)) << 4
    return high


@triton.jit
def value(words, mask, place: tl.constexpr, BITS: tl.constexpr, TYPE: tl.constexpr):
    """What the BITS bits from bit `place` of a word on stand for: 1 + code/2^BITS, but of a codebook its value, of Q8_0 the code.

    The bits of 1 + code/2^BITS are the code's, as the highest of its mantissa; making a float of an integer takes longer.
    `mask` covers these; as an argument it is in a register, and `and` and `or` are one instruction, which takes one constant.
    """
    if TYPE == "Q8_0":
        x = ((words << (24 - place)) >> 24).to(tl.float32)
    elif TYPE == "IQ4_NL" or TYPE == "IQ4_XS":
        x = codebook_value((words >> place) & 15)
    else:
        LEFT: tl.constexpr = 23 - BITS - place
        moved = words << LEFT if LEFT >= 0 else words >> -LEFT
        x = ((moved & mask) | 0x3F800000).to(tl.float32, bitcast=True)
    return x


@triton.jit
def scale_and_minimum(data, halves, block, g, TYPE: tl.constexpr, SIZE: tl.constexpr, BITS: tl.constexpr):
    """Of sub-blocks g [G] of blocks [R, G]: weight = scale·`value` − minimum."""
    at = block * SIZE
    first = halves + block * (SIZE // 2)
    if TYPE == "Q4_K" or TYPE == "Q5_K":
        sc, m = scale_min(data, at, g)
        scale, minimum = tl.load(first).to(tl.float32) * sc, tl.load(first + 1).to(tl.float32) * m
    elif TYPE == "Q2_K":
        both = byte(data, at, g)
        scale = tl.load(first + 40).to(tl.float32) * (both & 15).to(tl.float32)
        minimum = tl.load(first + 41).to(tl.float32) * (both >> 4).to(tl.float32)
    elif TYPE == "Q3_K":
        scale = tl.load(first + 54).to(tl.float32) * scales(data, at, g, TYPE)
        minimum = 4.0 * scale
    elif TYPE == "Q6_K":
        scale = tl.load(first + 104).to(tl.float32) * scales(data, at, g, TYPE)
        minimum = 32.0 * scale
    elif TYPE == "IQ4_XS":
        scale = tl.load(first).to(tl.float32) * scales(data, at, g, TYPE)
        minimum = 0.0 * scale
    else:
        scale = tl.load(first).to(tl.float32)
        if TYPE == "Q4_1" or TYPE == "Q5_1":
            minimum = -tl.load(first + 1).to(tl.float32)
        else:
            minimum = scale * (8.0 if TYPE == "Q4_0" else 16.0 if TYPE == "Q5_0" else 0.0)
    if TYPE != "Q8_0" and TYPE != "IQ4_NL" and TYPE != "IQ4_XS":
        scale *= 1 << BITS
        minimum += scale
    return scale, minimum
