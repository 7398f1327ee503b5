"""Coordinate descent over a block of columns, with the gradient of some rows in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..descend import SMALLEST
from .grid import ROWS, compiled_row_tiles, row_tiles, to_codes

_SMALLEST = tl.constexpr(SMALLEST)


def descend_block(codes: Tensor, gradient: Tensor, hessian: Tensor, step: Tensor, top: int) -> Tensor:
    """New codes [out, n] from gradient [out, n] under hessian [n, n], with step [out, n]."""
    codes, found = codes.contiguous(), torch.empty_like(codes, memory_format=torch.contiguous_format)
    out, n = codes.shape
    _descend[(triton.cdiv(out, ROWS),)](
        codes,
        gradient.contiguous(),
        hessian.contiguous(),
        step.contiguous(),
        found,
        out,
        n,
        TOP=top,
        **row_tiles(n),
    )
    return found


@triton.jit
def _descend(codes, gradient, hessian, step, found, out, n, ROWS: tl.constexpr, N: tl.constexpr, TOP: tl.constexpr):
    """For column i of ROWS rows: the code that is best given all others, and what its move does to the gradient of the columns."""
    rows, columns = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, N)
    inside = rows < out
    g = tl.load(gradient + rows[:, None] * n + columns[None, :], mask=inside[:, None] & (columns[None, :] < n), other=0.0)
    for i in range(n):
        pivot = tl.load(hessian + i * n + i)
        line = tl.load(hessian + i * n + columns, mask=columns < n, other=0.0)
        old = tl.load(codes + rows * n + i, mask=inside, other=0.0)
        by = tl.load(step + rows * n + i, mask=inside, other=1.0)
        now = tl.sum(tl.where(columns[None, :] == i, g, 0.0), 1)
        has_inverse = pivot >= _SMALLEST
        divisor = tl.zeros_like(now) + tl.where(has_inverse, pivot, 1.0)
        gain = tl.where(has_inverse, tl.div_rn(tl.zeros_like(now) + 1.0, divisor), 0.0)
        new = to_codes(old + tl.div_rn(now * gain, by), 0.0, TOP)
        tl.store(found + rows * n + i, new, mask=inside)
        g -= ((new - old) * by)[:, None] * line[None, :]


_POINTERS = dict.fromkeys(("codes", "gradient", "hessian", "step", "found"), "*fp32")
COMPILATIONS = (compiled_row_tiles("descend_block/128", _descend, _POINTERS, 128, TOP=15),)
