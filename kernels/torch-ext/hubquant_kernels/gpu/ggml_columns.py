"""Sub-blocks of weights as columns of a tile [SIZE/4, N, 4]: N = 32 per warp, so that every thread holds a whole sub-block.

Sums over a sub-block then stay within a thread; only what a super-block's sub-blocks share crosses threads.
"""

import triton
import triton.language as tl

# adding it leaves no bits behind the point, for |x| < 2²²: rounds halves to even
ROUNDER = tl.constexpr(12582912.0)
TINY = tl.constexpr(1e-30)
LARGEST_HALF = tl.constexpr(65504.0)


@triton.jit
def load(source, column, known, SIZE: tl.constexpr):
    """Sub-blocks number `column` [N] as float32 [SIZE/4, N, 4], zeros where they are not `known`."""
    chunk, place = tl.arange(0, SIZE // 4), tl.arange(0, 4)
    at = column[None, :, None].to(tl.int64) * SIZE + (chunk[:, None, None] * 4 + place[None, None, :])
    return tl.load(source + at, mask=known[None, :, None], other=0.0).to(tl.float32)


@triton.jit
def total(x):
    return tl.sum(tl.sum(x, axis=2), axis=0)


@triton.jit
def lowest(x):
    return tl.min(tl.min(x, axis=2), axis=0)


@triton.jit
def highest(x):
    return tl.max(tl.max(x, axis=2), axis=0)


@triton.jit
def peak(x):
    """The weight of largest magnitude of each sub-block, the negative one of two."""
    low, high = lowest(x), highest(x)
    return tl.where(high > -low, high, low)


@triton.jit
def each(x):
    """[N] → [1, N, 1], to go with tiles of weights."""
    return x[None, :, None]


@triton.jit
def rint(x):
    return (x + ROUNDER) - ROUNDER


@triton.jit
def clip(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def rounded16(x):
    """The nearest finite float16, as float32."""
    return clip(x, -LARGEST_HALF, LARGEST_HALF).to(tl.float16).to(tl.float32)


@triton.jit
def load_weights(importance, column, per_row, known, SIZE: tl.constexpr, G: tl.constexpr):
    """Importance of the columns, at least 10⁻⁸ of the mean over the G sub-blocks of a block; ones where all of it is zero."""
    N: tl.constexpr = column.shape[0]
    w = load(importance, column % per_row, known, SIZE)
    of_block = tl.reshape(total(w), [N // G, G])
    mean = tl.reshape(tl.broadcast_to(tl.sum(of_block, axis=1, keep_dims=True), [N // G, G]), [N]) / (G * SIZE)
    return tl.where(each(mean > 0), tl.maximum(w, each(1e-8 * mean)), 1.0)
