"""Encoders of the K types and IQ4_XS: weights in, finished super-blocks out, nothing in memory between.

A program takes 32 sub-blocks per warp. What is searched is `best_two_level` of ../ggml_best_affine.py and of
../ggml_best_symmetric.py; the definition's mode "best" starts from ggml's own search as well and keeps the better of the two.

Warp instructions per weight, a static count over all loops, are in kernels/REPORT.md: at most 25.
"""

import triton
import triton.language as tl

from . import ggml_best_affine as affine
from . import ggml_best_symmetric as symmetric
from .ggml_codebook import nearest_places
from .ggml_columns import each, load, load_weights, total
from .ggml_pack import (
    store_bytes,
    store_half,
    store_iq4_scales,
    store_nibbles,
    store_planes,
    store_q3_scales,
    store_scale_min,
)


@triton.jit
def encode_affine(
    x, importance, data, halves, n_blocks, per_row,
    WEIGHTED: tl.constexpr, TYPE: tl.constexpr, BYTES: tl.constexpr, SIZE: tl.constexpr,
    LEVELS: tl.constexpr, TOP: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Q2_K, Q4_K, Q5_K: x ≈ d·sc·code − dmin·m with the least Σ importance·(x − x̂)² found, for S super-blocks.

    x [n_blocks·256]; importance [per_row·SIZE] if WEIGHTED, per_row sub-blocks a row; data and halves: the bytes written.
    """
    G: tl.constexpr = 256 // SIZE
    block = tl.program_id(0) * S + tl.arange(0, S)
    column = tl.program_id(0) * (S * G) + tl.arange(0, S * G)
    known_column, known = column < n_blocks * G, block < n_blocks
    x = load(x, column, known_column, SIZE)
    if WEIGHTED:
        w = load_weights(importance, column, per_row, known_column, SIZE, G)
        sum_w = total(w)
    else:
        w = 1.0
        sum_w = tl.full([S * G], SIZE, tl.float32)
    d, dmin, sc, m = affine.best_two_level(x, w, sum_w, G, LEVELS, TOP)
    shifted = x + each(tl.reshape(dmin * m, [S * G]))
    codes = affine.rounded(shifted, tl.reshape(d * sc, [S * G]), LEVELS).to(tl.int32)
    sc, m, at = sc.to(tl.int32), m.to(tl.int32), block.to(tl.int64) * BYTES
    d, dmin = tl.reshape(d, [S]), tl.reshape(dmin, [S])
    if TYPE == "Q2_K":
        store_bytes(data, at, sc | (m << 4), known)
        store_planes(halves, at + 16, codes, known, SUB=16, A=2, PLANES=4, B=2, WIDTH=2)
        store_half(halves, at + 80, d, known)
        store_half(halves, at + 82, dmin, known)
    else:
        store_half(halves, at, d, known)
        store_half(halves, at + 2, dmin, known)
        store_scale_min(data, at + 4, sc, m, known)
        if TYPE == "Q5_K":
            store_planes(halves, at + 16, codes >> 4, known, SUB=32, A=1, PLANES=8, B=1, WIDTH=1)
        store_planes(halves, at + (BYTES - 128), codes & 15, known, SUB=32, A=4, PLANES=2, B=1, WIDTH=4)


@triton.jit
def encode_symmetric(
    x, importance, data, halves, n_blocks, per_row,
    WEIGHTED: tl.constexpr, TYPE: tl.constexpr, BYTES: tl.constexpr, SIZE: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, CODEBOOK: tl.constexpr, SC_LOW: tl.constexpr, SC_HIGH: tl.constexpr,
    COUNT: tl.constexpr, SIDES: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, STEP: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Q3_K, Q6_K, IQ4_XS: x ≈ d·sc·code with the least Σ importance·(x − x̂)² found, for S super-blocks; as `encode_affine`."""
    G: tl.constexpr = 256 // SIZE
    block = tl.program_id(0) * S + tl.arange(0, S)
    column = tl.program_id(0) * (S * G) + tl.arange(0, S * G)
    known_column, known = column < n_blocks * G, block < n_blocks
    x = load(x, column, known_column, SIZE)
    w = load_weights(importance, column, per_row, known_column, SIZE, G) if WEIGHTED else 1.0
    scale, curvature = symmetric.search(x, w, LOW, HIGH, CODEBOOK, COUNT, SIDES, FIRST, SECOND, STEP)
    d, sc = symmetric.best_two_level(x, w, scale, curvature, LOW, HIGH, CODEBOOK, SC_LOW, SC_HIGH, G)
    iscale = symmetric.inverse(tl.reshape(d * sc, [S * G]))
    sc, d, at = sc.to(tl.int32), tl.reshape(d, [S]), block.to(tl.int64) * BYTES
    if CODEBOOK:
        store_half(halves, at, d, known)
        store_iq4_scales(data, at + 2, sc, known)
        g = tl.arange(0, S * G)
        starts = (column // G).to(tl.int64) * BYTES + (8 + g % G * 16)
        store_nibbles(halves, starts, nearest_places(x * each(iscale)), known_column)
    else:
        codes = (symmetric.rounded(x, iscale, LOW, HIGH, False) - LOW).to(tl.int32)
        store_half(halves, at + (BYTES - 2), d, known)
        if TYPE == "Q6_K":
            store_planes(halves, at, codes & 15, known, SUB=16, A=2, PLANES=2, B=4, WIDTH=4)
            store_planes(halves, at + 128, codes >> 4, known, SUB=16, A=2, PLANES=4, B=2, WIDTH=2)
            store_bytes(data, at + 192, sc, known)
        else:
            store_planes(halves, at, codes >> 2, known, SUB=16, A=1, PLANES=8, B=2, WIDTH=1)
            store_planes(halves, at + 32, codes & 3, known, SUB=16, A=2, PLANES=4, B=2, WIDTH=2)
            store_q3_scales(data, at + 96, sc, known)
