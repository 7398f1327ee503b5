"""GPTQ's column loop with some rows of a group in registers.

The search for the group's scale is a launch of its own (grid.py), which takes three times the registers: in one program with it
fewer warps are at work in the loop. Measured on an H100, 14336 rows of 128: 526 µs in one program, 267 + 174 apart.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .ggml_codebook import nearest
from .grid import ROWS, compiled_row_tiles, row_tiles, to_codes


def gptq_block(weight: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    """Codes and errors of weight [..., out, n] with scale and zero [..., out, 1]; factor [..., n, n]."""
    return _launch(weight, factor, scale, zero.contiguous(), max_code)


def gptq_codebook_block(weight: Tensor, factor: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, which are places in IQ4's codebook, and errors of weight [out, n] with scale [out, 1]; factor [n, n]."""
    return _launch(weight, factor, scale, scale, max_code=0)


def _launch(weight: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    """max_code 0: codes are places in the codebook, and no zero is read."""
    weight = weight.contiguous()
    codes, errors = torch.empty_like(weight, dtype=torch.uint8), torch.empty_like(weight)
    out, n = weight.shape[-2:]
    batch = weight.shape[0] if weight.dim() == 3 else 1
    _block[(triton.cdiv(out, ROWS), batch)](
        weight,
        factor.contiguous(),
        scale.contiguous(),
        zero,
        codes,
        errors,
        out,
        n,
        MAX_CODE=max_code,
        **row_tiles(n),
    )
    return codes, errors


@triton.jit
def _block(weight, factor, scale, zero, codes, errors, out, n, ROWS: tl.constexpr, N: tl.constexpr, MAX_CODE: tl.constexpr):
    """For column i of ROWS rows: q_i = the nearest code, e = (w_i − q_i) / U_ii, and w_j −= e U_ij for the columns after it."""
    matrix = tl.program_id(1).to(tl.int64)
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, N)
    lines = matrix * out + rows
    w = tl.load(weight + lines[:, None] * n + columns[None, :], mask=(rows[:, None] < out) & (columns[None, :] < n), other=0.0)
    step = tl.load(scale + lines, mask=rows < out, other=1.0)
    if MAX_CODE:
        origin = tl.load(zero + lines, mask=rows < out, other=0.0)
    for i in range(n):
        line = factor + (matrix * n + i) * n
        pivot, after = tl.load(line + i), tl.load(line + columns, mask=(columns > i) & (columns < n), other=0.0)
        now = tl.sum(tl.where(columns[None, :] == i, w, 0.0), 1)
        if MAX_CODE:
            code = to_codes(tl.div_rn(now, step), origin, MAX_CODE)
            level = code - origin
        else:
            code, level = nearest(tl.div_rn(now, step))
        error = tl.div_rn(now - level * step, tl.zeros_like(now) + pivot)
        tl.store(codes + lines * n + i, code.to(tl.uint8), mask=rows < out)
        tl.store(errors + lines * n + i, error, mask=rows < out)
        w -= error[:, None] * after[None, :]


_POINTERS = {"weight": "*fp32", "factor": "*fp32", "scale": "*fp32", "zero": "*fp32", "codes": "*u8", "errors": "*fp32"}
# a sub-block of IQ4 is of 32 columns
COMPILATIONS = (
    compiled_row_tiles("gptq_block/g128", _block, _POINTERS, 128, MAX_CODE=15),
    compiled_row_tiles("gptq_block/codebook", _block, _POINTERS, 32, MAX_CODE=0),
)
