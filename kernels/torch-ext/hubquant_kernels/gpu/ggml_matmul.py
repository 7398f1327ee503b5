"""Rows of x times a weight in ggml's blocks. Few rows: each program decodes its blocks in registers. Many: decode, then a matmul.

A few rows are bound by reading the weight; a static bound for that is in the report of the compilations.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ggml_matmul import check_columns
from ..ggml_matmul import ggml_matmul_experts as operator
from ..ggml_types import GGML_TYPES
from .compilation import Compilation
from .ggml_dequantize import ggml_dequantize, views
from .ggml_layout import TYPES, UNITS, spread
from .ggml_words import SHAPES, load_high, load_word, mantissa_mask, scale_and_minimum, value

# up to so many rows of x the products are made beside the decoding, without tensor cores
FEW_ROWS = 8
# by rows of x: output rows per program, and weights of each that it reads at a time
TILES = {1: (8, 1024), 2: (8, 1024), 4: (8, 512), 8: (8, 512)}
# the codes of a word that begin at a multiple of 8 bits, by their width
MASKS = tl.constexpr({2: 0x03030303, 4: 0x0F0F0F0F, 8: -1})
# weights decoded at a time for many rows of x: bounds the memory they take
DECODED_WEIGHTS = 1 << 26
# up to so many pairs of a token and an expert each reads its expert's weight; beyond, an expert's tokens go together
FEW_PAIRS = 64
SHIPPED = (("Q4_0", 1), ("Q8_0", 1), ("Q4_K", 1), ("Q4_K", 8), ("Q6_K", 1))


@triton.jit
def _product(
    x, data, words, halves, experts, out, n_x, n_out, n_in, x_step, mask,
    M: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, EXPERTS: tl.constexpr,
    TYPE: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr, UNIT: tl.constexpr,
    BITS: tl.constexpr, WIDTH: tl.constexpr, RUN: tl.constexpr, OFFSET: tl.constexpr, SUB: tl.constexpr,
):  # fmt: skip
    """out[i, n] = Σ_k x[i // x_step, k]·weight[n, k] for M rows i from program_id(1)·M on and ROWS rows n.

    A sum over a sub-block is scale·Σ x·code − minimum·Σ x. With EXPERTS row i takes the weight number experts[i] of a stack,
    and M is 1.
    """
    PLANES: tl.constexpr = 8 // WIDTH
    BLOCKS: tl.constexpr = CHUNK // BLOCK
    W: tl.constexpr = CHUNK // PLANES // 4
    LOW_ONLY: tl.constexpr = BITS == WIDTH
    APART: tl.constexpr = PLANES if RUN * PLANES > SUB else 1  # sub-blocks that share bytes
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.program_id(1) * M + tl.arange(0, M)
    per_row = n_in // BLOCK
    first = (tl.program_id(0) * ROWS).to(tl.int64)
    if EXPERTS:
        first += tl.load(experts + tl.program_id(1)).to(tl.int64) * n_out
    data += first * per_row * SIZE
    words += first * per_row * (SIZE // UNIT)
    halves += first * per_row * (SIZE // 2)
    within = tl.minimum(tl.arange(0, ROWS), n_out - 1 - tl.program_id(0) * ROWS)[:, None] * per_row
    x += (tl.where(i < n_x, i, 0) // x_step).to(tl.int64)[:, None] * n_in
    w = tl.arange(0, W)
    place = w % (W // BLOCKS) * 4
    k_first = place // RUN * (RUN * PLANES) + place % RUN
    total = tl.zeros([M, ROWS, W], tl.float32)
    for start in range(0, per_row, BLOCKS):
        at = (within + tl.minimum(start + w // (W // BLOCKS), per_row - 1)[None, :]) * SIZE
        low = load_word(words, at + (OFFSET + place)[None, :], UNIT)
        scale, minimum = _scales(data, halves, within, start, per_row, BLOCKS, TYPE, BLOCK, SIZE, BITS, RUN, SUB, APART)
        product, sum_x = tl.zeros([M, ROWS, W], tl.float32), tl.zeros([M, W], tl.float32)
        for plane in tl.static_range(PLANES):
            k = k_first + plane * RUN
            codes = low
            if not LOW_ONLY:
                codes = ((low >> (WIDTH * plane)) & MASKS[WIDTH]) | load_high(words, at, k[None, :], UNIT, TYPE)
            column = start * BLOCK + w // (W // BLOCKS) * BLOCK + k
            for b in tl.static_range(4):
                some = tl.load(x + (column + b)[None, :], mask=(column < n_in)[None, :], other=0.0).to(tl.float32)
                product += some[:, None, :] * value(codes, mask, 8 * b + WIDTH * plane * LOW_ONLY, BITS, TYPE)[None, :, :]
                sum_x += some
            if plane + 1 == PLANES or APART > 1:
                total += _of_plane(scale, plane, APART, W) * product - _of_plane(minimum, plane, APART, W) * sum_x[:, None, :]
                product, sum_x = tl.zeros([M, ROWS, W], tl.float32), tl.zeros([M, W], tl.float32)
    at_out = i[:, None].to(tl.int64) * n_out + row[None, :]
    tl.store(out + at_out, tl.sum(total, axis=2).to(out.dtype.element_ty), mask=(i < n_x)[:, None] & (row < n_out)[None, :])


@triton.jit
def _scales(
    data, halves, within, start, per_row, BLOCKS: tl.constexpr, TYPE: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
    BITS: tl.constexpr, RUN: tl.constexpr, SUB: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Scales and minima of the sub-blocks of BLOCKS blocks: in the order of their bytes, those of one byte's planes together."""
    G: tl.constexpr = BLOCK // SUB
    IN_RUN: tl.constexpr = RUN // SUB if RUN > SUB else 1
    n = tl.arange(0, BLOCKS * G)
    place = n % G // APART
    g = place // IN_RUN * (IN_RUN * APART) + n % APART * IN_RUN + place % IN_RUN
    block = within + tl.minimum(start + n // G, per_row - 1)[None, :]
    return scale_and_minimum(data, halves, block, g, TYPE, SIZE, BITS)


@triton.jit
def _of_plane(x, plane: tl.constexpr, APART: tl.constexpr, W: tl.constexpr):
    """Those that `_scales` gave for one plane, for each word: [1, ROWS, W]."""
    R: tl.constexpr = x.shape[0]
    N: tl.constexpr = x.shape[1] // APART
    if APART == 2:
        even, odd = tl.split(tl.reshape(x, [R, N, 2]))
        x = odd if plane % 2 else even
    elif APART == 4:
        even, odd = tl.split(tl.reshape(x, [R, N, 2, 2]))
        first, second = tl.split(odd if plane % 2 else even)
        x = second if plane // 2 else first
    return spread(x, W // N)[None, :, :]


def _constants(type_name: str) -> dict[str, Any]:
    kind, (bits, width, run, offset, sub) = GGML_TYPES[type_name], SHAPES[type_name]
    sizes = {"TYPE": type_name, "BLOCK": kind.block_size, "SIZE": kind.type_size, "UNIT": UNITS[type_name]}
    return sizes | {"BITS": bits, "WIDTH": width, "RUN": run, "OFFSET": offset, "SUB": sub}


def _few(x: Tensor, data: Tensor, type_name: str, experts: Tensor | None) -> Tensor:
    """x [n, in] times a weight [out, row_bytes], or times those of its k experts each, [n_experts, out, row_bytes]: [n·k, out]."""
    n_out = data.shape[-2]
    x_step = 1 if experts is None else experts.shape[1]
    n_x = len(x) * x_step
    out = x.new_empty(n_x, n_out)
    m = 1 if experts is not None else triton.next_power_of_2(n_x)
    rows, chunk = TILES[m]
    _product[(triton.cdiv(n_out, rows), triton.cdiv(n_x, m))](
        x.contiguous(), *views(data, type_name), x if experts is None else experts.contiguous(), out,
        n_x, n_out, x.shape[1], x_step, mantissa_mask(type_name),
        M=m, ROWS=rows, CHUNK=chunk, EXPERTS=experts is not None, **_constants(type_name),
        num_stages=2, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def ggml_matmul(x: Tensor, data: Tensor, type_name: str) -> Tensor:
    """x [..., in] @ Wᵀ → [..., out] in x's dtype, for W as uint8 [out, row_bytes]."""
    check_columns(x, data, type_name)
    rows, n_out = x.reshape(-1, x.shape[-1]), len(data)
    if type_name in TYPES and 0 < len(rows) <= FEW_ROWS and n_out:
        return _few(rows, data, type_name, None).view(*x.shape[:-1], n_out)
    out = x.new_empty(len(rows), n_out)
    step = max(1, DECODED_WEIGHTS // x.shape[-1])
    for start in range(0, n_out, step):
        weight = ggml_dequantize(data[start : start + step], type_name, x.dtype)
        torch.matmul(rows, weight.T, out=out[:, start : start + step])
    return out.view(*x.shape[:-1], n_out)


def ggml_matmul_experts(x: Tensor, data: Tensor, experts: Tensor, type_name: str) -> Tensor:
    """Each x of [tokens, in] times the weights of its k experts → [tokens, k, out] in x's dtype."""
    check_columns(x, data, type_name)
    if type_name in TYPES and 0 < experts.numel() <= FEW_PAIRS and data.shape[1]:
        return _few(x, data, type_name, experts).view(*experts.shape, -1)
    return operator._init_fn(x, data, experts, type_name)


def _compilation(type_name: str, m: int) -> Compilation:
    (rows, chunk), kind, unit = TILES[m], GGML_TYPES[type_name], UNITS[type_name]
    numbers = dict.fromkeys(("n_x", "n_out", "n_in", "x_step", "mask"), "i32")
    return Compilation(
        name=f"ggml_matmul/{type_name.lower()}-m{m}",
        kernel=_product,
        signature={"x": "*fp16", "data": "*u8", "words": f"*i{8 * unit}", "halves": "*fp16", "experts": "*i32", "out": "*fp16"}
        | numbers,
        constants={"M": m, "ROWS": rows, "CHUNK": chunk, "EXPERTS": False} | _constants(type_name),
        aligned=("x", "data", "words", "halves", "out", "n_in"),
        weights=rows * chunk,
        bytes_read=rows * chunk * kind.bits_per_weight / 8,
        wide_loads=False,
        why_narrow="a lane reads the words whose codes it multiplies, of 32 bits, or 16 where blocks begin on no multiple of 4",
    )


COMPILATIONS = tuple(_compilation(*shipped) for shipped in SHIPPED)
