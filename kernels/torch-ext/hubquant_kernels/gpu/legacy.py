"""Encoders of the types with blocks of 32 weights: weights in, finished blocks out. One block per thread.

What is searched is `best_one_level` of ../ggml_best_affine.py and of ../ggml_best_symmetric.py, as in kquant.py.
"""

import triton
import triton.language as tl

from . import ggml_best_affine as affine
from . import ggml_best_symmetric as symmetric
from .ggml_codebook import nearest_places
from .ggml_columns import each, load, load_weights, total
from .ggml_pack import store_bit32, store_half, store_nibbles, store_words, words


@triton.jit
def store_codes(halves, at, codes, known, BYTES: tl.constexpr, FIVE_BITS: tl.constexpr):
    """Codes of 4 or 5 bits at the end of blocks of BYTES bytes from byte `at` [N] on."""
    store_nibbles(halves, at + (BYTES - 16), codes & 15, known)
    if FIVE_BITS:
        store_bit32(halves, at + (BYTES - 20), codes >> 4, known)


@triton.jit
def encode_affine(
    x, importance, data, halves, n_blocks, per_row,
    WEIGHTED: tl.constexpr, TYPE: tl.constexpr, BYTES: tl.constexpr, LEVELS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Q4_1, Q5_1: x ≈ d·code + m with the least Σ importance·(x − x̂)² found, for N blocks.

    x [n_blocks·32]; importance [per_row·32] if WEIGHTED, per_row blocks a row; data and halves: the bytes written.
    """
    block = tl.program_id(0) * N + tl.arange(0, N)
    known = block < n_blocks
    x = load(x, block, known, 32)
    if WEIGHTED:
        w = load_weights(importance, block, per_row, known, 32, 1)
        sum_w = total(w)
    else:
        w = 1.0
        sum_w = tl.full([N], 32, tl.float32)
    d, minimum = affine.best_one_level(x, w, sum_w, LEVELS)
    codes = affine.rounded(x + each(minimum), d, LEVELS).to(tl.int32)
    at = block.to(tl.int64) * BYTES
    store_half(halves, at, d, known)
    store_half(halves, at + 2, -minimum, known)
    store_codes(halves, at, codes, known, BYTES, TYPE == "Q5_1")


@triton.jit
def encode_symmetric(
    x, importance, data, halves, n_blocks, per_row,
    WEIGHTED: tl.constexpr, TYPE: tl.constexpr, BYTES: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, CODEBOOK: tl.constexpr,
    COUNT: tl.constexpr, SIDES: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, STEP: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Q4_0, Q5_0, Q8_0, IQ4_NL: x ≈ d·code with the least Σ importance·(x − x̂)² found, for N blocks; as `encode_affine`."""
    block = tl.program_id(0) * N + tl.arange(0, N)
    known = block < n_blocks
    x = load(x, block, known, 32)
    w = load_weights(importance, block, per_row, known, 32, 1) if WEIGHTED else 1.0
    scale, _ = symmetric.search(x, w, LOW, HIGH, CODEBOOK, COUNT, SIDES, FIRST, SECOND, STEP)
    d = symmetric.best_one_level(x, w, scale, LOW, HIGH, CODEBOOK)
    iscale, at = symmetric.inverse(d), block.to(tl.int64) * BYTES
    store_half(halves, at, d, known)
    if TYPE == "IQ4_NL":
        store_codes(halves, at, nearest_places(x * each(iscale)), known, BYTES, False)
    else:
        codes = symmetric.rounded(x, iscale, LOW, HIGH, False)
        if TYPE == "Q8_0":
            place = at[None, :] + (2 + tl.arange(0, 8)[:, None] * 4)
            store_words(halves, place, words(codes.to(tl.int32) & 255), known[None, :])
        else:
            store_codes(halves, at, (codes - LOW).to(tl.int32), known, BYTES, TYPE == "Q5_0")
