"""The nearest of the sixteen values of ../ggml_codebook.py: exactly by comparisons, and nearly by two polynomials.

Fifteen comparisons take 45 instructions, the polynomials 17. The first gives the place less 8 within 0.026 at the middles
between values (minimax at these), the second the value at a place within 0.38, so that rounded it is the value. Rounding
x to the value found so has a half percent more squared error than to the nearest, spread evenly over x.
"""

import itertools

import triton
import triton.language as tl

from ..ggml_codebook import VALUES
from .ggml_columns import clip, rint

MIDDLES = tl.constexpr(tuple((a + b) / 2 for a, b in itertools.pairwise(VALUES)))
GAPS = tl.constexpr(tuple(b - a for a, b in itertools.pairwise(VALUES)))
FIRST = tl.constexpr(float(VALUES[0]))
# coefficients, constant first: of x/128, and of (place − 8)/8
PLACE = tl.constexpr((-0.121564, 10.9174, 0.0319647, -5.75363, -0.185659, 2.81289))
VALUE = tl.constexpr((1.37097, 92.447, -0.448815, 37.0258, 5.92419, 4.74452))


@triton.jit
def polynomial(x, COEFFICIENTS: tl.constexpr):
    return COEFFICIENTS[0] + x * (
        COEFFICIENTS[1] + x * (COEFFICIENTS[2] + x * (COEFFICIENTS[3] + x * (COEFFICIENTS[4] + x * COEFFICIENTS[5])))
    )


@triton.jit
def near_values(x):
    """The value nearest to x, or its neighbour where x is about half-way."""
    place = rint(polynomial(clip(x, -127.0, 113.0) * (1 / 128), PLACE))
    return rint(polynomial(place * (1 / 8), VALUE))


@triton.jit
def nearest_places(x):
    """The place 0..15 of the value nearest to x, of the upper one of two as near, as int32."""
    place = tl.zeros(x.shape, tl.float32)
    for i in tl.static_range(15):
        place += tl.where(x >= MIDDLES[i], 1.0, 0.0)
    return place.to(tl.int32)


@triton.jit
def nearest(x):
    """The place of `nearest_places`, and the value there, as float32."""
    place, value = tl.zeros(x.shape, tl.float32), tl.zeros(x.shape, tl.float32) + FIRST
    for i in tl.static_range(15):
        above = x >= MIDDLES[i]
        place += tl.where(above, 1.0, 0.0)
        value += tl.where(above, GAPS[i] * 1.0, 0.0)
    return place, value
