"""The search for a group's scale and zero point, with the weights of some rows on the chip."""

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..grid import LARGEST_GROUP, SHRINK_STEPS, SMALLEST_SCALE
from .compilation import Compilation

ROWS = 16
NUM_WARPS, NUM_STAGES = 4, 2

_STEPS = tl.constexpr(SHRINK_STEPS)
_SMALLEST = tl.constexpr(SMALLEST_SCALE)
_LARGEST = tl.constexpr(float(torch.finfo(torch.float16).max))
_TINY = tl.constexpr(float(torch.finfo(torch.float32).tiny))
_TO_INTEGER = tl.constexpr(1.5 * 2.0**23)  # adding it rounds half to even, for |x| < 2²²


def fit_group(weight: Tensor, metric: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero [..., out, 1] of weight [..., out, n] under metric [..., n], with or without a batch dimension.

    As the definition, but a loss is added up in another order: rows whose scales are equally good within the rounding of float32
    may get another one of them.
    """
    out, n = weight.shape[-2:]
    batch = weight.shape[0] if weight.dim() == 3 else 1
    scale, zero = (weight.new_empty((*weight.shape[:-1], 1)) for _ in range(2))
    _fit[(triton.cdiv(out, ROWS), batch)](
        weight.contiguous(),
        metric.contiguous(),
        scale,
        zero,
        out,
        n,
        MAX_CODE=2**bits - 1,
        SYMMETRIC=symmetric,
        **row_tiles(n),
    )
    return scale, zero


def row_tiles(n: int) -> dict[str, Any]:
    """How kernels are launched whose programs hold ROWS rows of n columns in registers, and round as the definitions do."""
    tile = {"ROWS": ROWS, "N": max(16, triton.next_power_of_2(n))}
    return tile | {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES, "enable_fp_fusion": False}


def compiled_row_tiles(name: str, kernel: Any, pointers: Mapping[str, str], n: int, **constants: Any) -> Compilation:
    """Such a kernel, with the sizes `out` and `n` after its pointers, ahead of time."""
    return Compilation(
        name=name,
        kernel=kernel,
        signature={**pointers, "out": "i32", "n": "i32"},
        constants={"ROWS": ROWS, "N": n, **constants},
        aligned=(*pointers, "out", "n"),
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
        fp_fusion=False,
    )


@triton.jit
def rint(x):
    """The nearest integer, halves to even."""
    return (x + _TO_INTEGER) - _TO_INTEGER


@triton.jit
def to_codes(x, zero, MAX_CODE: tl.constexpr):
    """clamp(round(x) + zero, 0, MAX_CODE) for x = w / scale."""
    return _clamp(rint(x) + zero, MAX_CODE)


@triton.jit
def _clamp(code, MAX_CODE: tl.constexpr):
    return tl.minimum(tl.maximum(code, 0.0), MAX_CODE * 1.0)


@triton.jit
def search(w, metric, MAX_CODE: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Scale and zero of every row of w [rows, n]: the least Σ metric·(Q(w) − w)² over shrunken ranges, then refitted.

    `metric` [1, n] is squared, its largest entry 1. The refit: s' = Σ metric·p·w / Σ metric·p², p the points of the grid in steps.
    """
    MIDDLE: tl.constexpr = (MAX_CODE + 1) // 2
    scale, zero = span(w, 1.0, MAX_CODE, SYMMETRIC)
    loss = _loss(w, scale, zero, metric, MAX_CODE)
    for step in range(1, _STEPS + 1):
        shrink = tl.div_rn(tl.zeros_like(loss) + (2 * _STEPS - step), tl.zeros_like(loss) + 2 * _STEPS)
        one, its_zero = span(w, shrink, MAX_CODE, SYMMETRIC)
        if SYMMETRIC:
            scale, zero, loss = _better(w, scale, zero, loss, one, its_zero, metric, MAX_CODE)
            turned = _storable(-one * (MIDDLE / (MIDDLE - 1)))
            scale, zero, loss = _better(w, scale, zero, loss, turned, its_zero, metric, MAX_CODE)
        else:
            for shift in tl.static_range(-1, 2):
                shifted = _clamp(its_zero + shift, MAX_CODE)
                scale, zero, loss = _better(w, scale, zero, loss, one, shifted, metric, MAX_CODE)
    for _ in range(2):
        x = tl.div_rn(w, tl.broadcast_to(scale[:, None], w.shape))
        points = to_codes(x, zero[:, None], MAX_CODE) - zero[:, None]
        counted = points * metric
        norm = tl.maximum(tl.sum(counted * points, 1), _TINY)
        refit = _storable(tl.div_rn(tl.sum(counted * w, 1), norm))
        scale, zero, loss = _better(w, scale, zero, loss, refit, zero, metric, MAX_CODE)
    return scale, zero


@triton.jit
def span(w, shrink, MAX_CODE: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Scale and zero that span the range of every row times `shrink`."""
    if SYMMETRIC:
        MIDDLE: tl.constexpr = (MAX_CODE + 1) // 2
        high, low = tl.max(w, 1), tl.min(w, 1)
        first = tl.argmax(tl.abs(w), 1)  # of +a and −a, the one that comes first, as the definition has it
        at_first = tl.sum(tl.where(tl.arange(0, w.shape[1])[None, :] == first[:, None], w, 0.0), 1)
        largest = tl.where(high == -low, at_first, tl.where(high > -low, high, low))
        scale = _storable(-largest * shrink * (1 / MIDDLE))
        zero = tl.zeros_like(scale) + MIDDLE
    else:
        low, high = tl.minimum(tl.min(w, 1), 0.0), tl.maximum(tl.max(w, 1), 0.0)
        scale = _storable(tl.div_rn((high - low) * shrink, tl.zeros_like(low) + MAX_CODE))
        zero = _clamp(rint(tl.div_rn(-low * shrink, scale)), MAX_CODE)
    return scale, zero


@triton.jit
def _storable(scale):
    """Rounded to float16, no smaller than its least normal number and no larger than its largest."""
    magnitude = tl.minimum(tl.maximum(tl.abs(scale), _SMALLEST), _LARGEST)
    signed = tl.where(scale.to(tl.int32, bitcast=True) < 0, -magnitude, magnitude)
    return signed.to(tl.float16).to(tl.float32)


@triton.jit
def _loss(w, scale, zero, metric, MAX_CODE: tl.constexpr):
    """Of every row."""
    x = tl.div_rn(w, tl.broadcast_to(scale[:, None], w.shape))
    error = (to_codes(x, zero[:, None], MAX_CODE) - zero[:, None]) * scale[:, None] - w
    return tl.sum(error * error * metric, 1)


@triton.jit
def _better(w, scale, zero, loss, other, other_zero, metric, MAX_CODE: tl.constexpr):
    """The better of two scales for every row."""
    its_loss = _loss(w, other, other_zero, metric, MAX_CODE)
    wins = its_loss < loss
    return tl.where(wins, other, scale), tl.where(wins, other_zero, zero), tl.where(wins, its_loss, loss)


@triton.jit
def load_metric(metric, n, N: tl.constexpr):
    """metric [n] over its largest entry, squared, with zeros up to N: [1, N]."""
    at = tl.arange(0, N)
    row = tl.load(metric + at, mask=at < n, other=0.0)
    largest = tl.maximum(tl.max(tl.abs(row), 0), _TINY)
    share = tl.div_rn(row, tl.zeros_like(row) + largest)
    return (share * share)[None, :]


@triton.jit
def _fit(weight, metric, scale, zero, out, n, ROWS: tl.constexpr, N: tl.constexpr, MAX_CODE: tl.constexpr, SYMMETRIC: tl.constexpr):
    """`search` for ROWS rows of one matrix of the batch."""
    matrix = tl.program_id(1).to(tl.int64)
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, N)
    lines = matrix * out + rows
    w = tl.load(weight + lines[:, None] * n + columns[None, :], mask=(rows[:, None] < out) & (columns[None, :] < n), other=0.0)
    found, its_zero = search(w, load_metric(metric + matrix * n, n, N), MAX_CODE, SYMMETRIC)
    tl.store(scale + lines, found, mask=rows < out)
    tl.store(zero + lines, its_zero, mask=rows < out)


def _compilation(name: str, symmetric: bool) -> Compilation:
    pointers = dict.fromkeys(("weight", "metric", "scale", "zero"), "*fp32")
    return compiled_row_tiles(f"fit_group/{name}", _fit, pointers, LARGEST_GROUP, MAX_CODE=15, SYMMETRIC=symmetric)


COMPILATIONS = (_compilation("symmetric-g128", True), _compilation("asymmetric-g128", False))
