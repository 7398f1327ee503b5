"""Rows of x times a weight in ggml's blocks. Few rows: each program decodes its blocks in registers. Many: decode, then a matmul.

A few rows are bound by reading the weight; a static bound for that is in the report of the compilations.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ggml_matmul import ggml_matmul_experts as operator
from ..ggml_types import GGML_TYPES
from .compilation import Compilation
from .ggml_dequantize import ggml_dequantize, views
from .ggml_layout import TYPES, UNITS, decode

# up to so many rows of x the products are made beside the decoding, without tensor cores
FEW_ROWS = 8
# by rows of x: output rows per program, and weights of each that it reads at a time; M·ROWS·CHUNK/128 registers hold sums
TILES = {1: (8, 512), 2: (8, 512), 4: (8, 256), 8: (4, 256)}
# weights decoded at a time for many rows of x: bounds the memory they take
DECODED_WEIGHTS = 1 << 26
# up to so many pairs of a token and an expert each reads its expert's weight; beyond, an expert's tokens go together
FEW_PAIRS = 64
SHIPPED = (("Q4_0", 1), ("Q8_0", 1), ("Q4_K", 1), ("Q4_K", 8), ("Q6_K", 1))


@triton.jit
def _product(
    x, data, words, halves, experts, out, n_x, n_out, n_in, x_step,
    M: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    TYPE: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr, UNIT: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """out[i, n] = Σ_k x[i // x_step, k]·weight[n, k] for M rows i from program_id(1)·M on and ROWS rows n.

    With EXPERTS row i takes the weight number experts[i] of a stack, and M is 1.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.program_id(1) * M + tl.arange(0, M)
    per_row = n_in // BLOCK
    first = (tl.program_id(0) * ROWS).to(tl.int64)
    if EXPERTS:
        first += tl.load(experts + tl.program_id(1)).to(tl.int64) * n_out
    data += first * per_row * SIZE
    words += first * per_row * (SIZE // UNIT)
    halves += first * per_row * (SIZE // 2)
    within = tl.minimum(tl.arange(0, ROWS), n_out - 1 - tl.program_id(0) * ROWS)
    source = (tl.where(i < n_x, i, 0) // x_step).to(tl.int64) * n_in
    part = tl.arange(0, CHUNK // BLOCK)
    column = tl.arange(0, CHUNK)
    total = tl.zeros([M, ROWS, CHUNK], tl.float32)
    for start in range(0, n_in, CHUNK):
        place = tl.minimum(start // BLOCK + part, per_row - 1)
        block = tl.reshape(within[:, None] * per_row + place[None, :], [ROWS * CHUNK // BLOCK])
        weight = tl.reshape(decode(data, words, halves, block, TYPE, BLOCK, SIZE, UNIT), [1, ROWS, CHUNK])
        k = start + column
        some = tl.load(x + source[:, None] + k[None, :], mask=(k < n_in)[None, :], other=0.0).to(tl.float32)
        total += some[:, None, :] * weight
    at = i[:, None].to(tl.int64) * n_out + row[None, :]
    tl.store(out + at, tl.sum(total, axis=2).to(out.dtype.element_ty), mask=(i < n_x)[:, None] & (row < n_out)[None, :])


def _few(x: Tensor, data: Tensor, type_name: str, experts: Tensor | None) -> Tensor:
    """x [n, in] times a weight [out, row_bytes], or times those of its k experts each, [n_experts, out, row_bytes]: [n·k, out]."""
    kind, n_out = GGML_TYPES[type_name], data.shape[-2]
    x_step = 1 if experts is None else experts.shape[1]
    n_x = len(x) * x_step
    out = x.new_empty(n_x, n_out)
    m = 1 if experts is not None else triton.next_power_of_2(n_x)
    rows, chunk = TILES[m]
    _product[(triton.cdiv(n_out, rows), triton.cdiv(n_x, m))](
        x.contiguous(), *views(data, type_name), x if experts is None else experts.contiguous(), out,
        n_x, n_out, x.shape[1], x_step,
        M=m, ROWS=rows, CHUNK=chunk, TYPE=type_name, BLOCK=kind.block_size, SIZE=kind.type_size, UNIT=UNITS[type_name],
        EXPERTS=experts is not None, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def ggml_matmul(x: Tensor, data: Tensor, type_name: str) -> Tensor:
    """x [..., in] @ Wᵀ → [..., out] in x's dtype, for W as uint8 [out, row_bytes]."""
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
    if type_name in TYPES and 0 < experts.numel() <= FEW_PAIRS and data.shape[1]:
        return _few(x, data, type_name, experts).view(*experts.shape, -1)
    return operator._init_fn(x, data, experts, type_name)


def _compilation(type_name: str, m: int) -> Compilation:
    (rows, chunk), kind, unit = TILES[m], GGML_TYPES[type_name], UNITS[type_name]
    numbers = dict.fromkeys(("n_x", "n_out", "n_in", "x_step"), "i32")
    return Compilation(
        name=f"ggml_matmul/{type_name.lower()}-m{m}",
        kernel=_product,
        signature={"x": "*fp16", "data": "*u8", "words": f"*i{8 * unit}", "halves": "*fp16", "experts": "*i32", "out": "*fp16"}
        | numbers,
        constants={
            "M": m,
            "ROWS": rows,
            "CHUNK": chunk,
            "TYPE": type_name,
            "BLOCK": kind.block_size,
            "SIZE": kind.type_size,
            "UNIT": unit,
            "EXPERTS": False,
        },
        aligned=("x", "data", "words", "halves", "out", "n_in"),
        weights=rows * chunk,
        bytes_read=rows * chunk * kind.bits_per_weight / 8,
        wide_loads=False,
    )


COMPILATIONS = tuple(_compilation(*shipped) for shipped in SHIPPED)
