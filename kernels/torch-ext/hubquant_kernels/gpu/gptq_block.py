"""GPTQ's column loop with some rows of a group in registers; the group's scale is searched before, while they are there."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compilation import Compilation
from .grid import NUM_STAGES, NUM_WARPS, ROWS, load_metric, search, to_codes


def gptq_block(weight: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    """Codes and errors of weight [..., out, n] with scale and zero [..., out, 1]; factor [..., n, n]."""
    return _launch(weight, factor, None, None, scale.contiguous(), zero.contiguous(), max_code, False)


def gptq_group(
    weight: Tensor, factor: Tensor, metric: Tensor, seen: Tensor, bits: int, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes and errors, and the scale and zero [..., out, 1] found under metric [..., n, n] on the channels seen [..., n]."""
    scale, zero = (weight.new_empty((*weight.shape[:-1], 1)) for _ in range(2))
    visible = seen.to(weight.dtype).contiguous()
    codes, errors = _launch(weight, factor, metric.contiguous(), visible, scale, zero, 2**bits - 1, symmetric)
    return codes, errors, scale, zero


def _launch(
    weight: Tensor,
    factor: Tensor,
    metric: Tensor | None,
    seen: Tensor | None,
    scale: Tensor,
    zero: Tensor,
    max_code: int,
    symmetric: bool,
) -> tuple[Tensor, Tensor]:
    """With a metric, scale and zero are written; without, they are read."""
    weight = weight.contiguous()
    codes, errors = torch.empty_like(weight, dtype=torch.uint8), torch.empty_like(weight)
    out, n = weight.shape[-2:]
    batch = weight.shape[0] if weight.dim() == 3 else 1
    _block[(triton.cdiv(out, ROWS), batch)](
        weight,
        factor.contiguous(),
        metric,
        seen,
        scale,
        zero,
        codes,
        errors,
        out,
        n,
        ROWS=ROWS,
        N=max(16, triton.next_power_of_2(n)),
        MAX_CODE=max_code,
        SYMMETRIC=symmetric,
        SEARCH=metric is not None,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
        enable_fp_fusion=False,
    )
    return codes, errors


@triton.jit
def _block(
    weight,
    factor,
    metric,
    seen,
    scale,
    zero,
    codes,
    errors,
    out,
    n,
    ROWS: tl.constexpr,
    N: tl.constexpr,
    MAX_CODE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    SEARCH: tl.constexpr,
):
    """For column i of ROWS rows: q_i = the nearest code, e = (w_i − q_i) / U_ii, and w_j −= e U_ij for the columns after it."""
    matrix = tl.program_id(1).to(tl.int64)
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, N)
    lines = matrix * out + rows
    w = tl.load(weight + lines[:, None] * n + columns[None, :], mask=(rows[:, None] < out) & (columns[None, :] < n), other=0.0)
    if SEARCH:
        visible = tl.load(seen + matrix * n + columns, mask=columns < n, other=0.0)
        step, origin = search(w * visible[None, :], load_metric(metric + matrix * n * n, n, N), MAX_CODE, SYMMETRIC)
        tl.store(scale + lines, step, mask=rows < out)
        tl.store(zero + lines, origin, mask=rows < out)
    else:
        step = tl.load(scale + lines, mask=rows < out, other=1.0)
        origin = tl.load(zero + lines, mask=rows < out, other=0.0)
    for i in range(n):
        line = factor + (matrix * n + i) * n
        pivot, after = tl.load(line + i), tl.load(line + columns, mask=(columns > i) & (columns < n), other=0.0)
        now = tl.sum(tl.where(columns[None, :] == i, w, 0.0), 1)
        code = to_codes(tl.div_rn(now, step), origin, MAX_CODE)
        error = tl.div_rn(now - (code - origin) * step, tl.zeros_like(now) + pivot)
        tl.store(codes + lines * n + i, code.to(tl.uint8), mask=rows < out)
        tl.store(errors + lines * n + i, error, mask=rows < out)
        w -= error[:, None] * after[None, :]


def _compilation(name: str, symmetric: bool, found: bool) -> Compilation:
    pointers = {"weight": "*fp32", "factor": "*fp32", "scale": "*fp32", "zero": "*fp32", "codes": "*u8", "errors": "*fp32"}
    searched = {"metric": "*fp32", "seen": "*fp32"} if found else {}
    absent = {} if found else {"metric": None, "seen": None}
    return Compilation(
        name=name,
        kernel=_block,
        signature={**pointers, **searched, "out": "i32", "n": "i32"},
        constants={"ROWS": ROWS, "N": 128, "MAX_CODE": 15, "SYMMETRIC": symmetric, "SEARCH": found, **absent},
        aligned=(*pointers, *searched, "out", "n"),
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
        fp_fusion=False,
        tensor_cores=found,
    )


COMPILATIONS = (
    _compilation("gptq_block/g128", False, False),
    _compilation("gptq_group/symmetric-g128", True, True),
    _compilation("gptq_group/asymmetric-g128", False, True),
)
