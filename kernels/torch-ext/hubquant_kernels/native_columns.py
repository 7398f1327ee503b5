"""GPTQ's column loop, the losses of its grids, and coordinate descent as machine code: native/columns.cpp, called for all rows of a
matrix at once.

What the functions compute is said where they are defined in plain torch (gptq_block, gptq_group, fit_group, descend); theirs is
another order of the same sums. None where there is no machine code to call.
"""

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

from . import native

# rows that are worth a thread, in weights; a multiple of the rows that are taken side by side
WEIGHTS_PER_THREAD = 1 << 15
SIDE_BY_SIDE = 32


def gptq_block(
    weight: Tensor, factor: Tensor, scale: Tensor, zero: Tensor | None, size: int, book: Sequence[float] = ()
) -> tuple[Tensor, Tensor] | None:
    """Codes 0..size − 1 [out, n] uint8 and errors [out, n] of weight [out, n]; with a `book` of values, places in it."""
    library = _library(weight)
    if library is None:
        return None
    given = [t.float().contiguous() for t in (weight, factor, scale)]
    origin = None if zero is None else zero.float().contiguous()
    values = (c_float * len(book))(*book) if book else None
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    errors = torch.empty(weight.shape)

    def rows(first: int, last: int) -> None:
        library.hubquant_gptq_block(
            *map(_pointer, given), _pointer(origin), values, c_int64(size), c_int64(first), c_int64(last),
            c_int64(weight.shape[1]), _pointer(codes), _pointer(errors),
        )  # fmt: skip

    _each(rows, weight)
    return codes, errors


def gptq_group(
    weight: Tensor, factor: Tensor, metric: Tensor, seen: Tensor, scale: Tensor, zero: Tensor, max_code: int,
    times: Sequence[float], refits: int,
) -> tuple[Tensor, Tensor, Tensor] | None:  # fmt: skip
    """Codes [out, n] uint8, errors [out, n] and scale [out, 1] of weight [out, n]. seen [n] bool; zero [out, 1]; tried are `times`
    each scale [out, 1], and then `refits` times what least squares find."""
    library = _library(weight)
    if library is None:
        return None
    given = [t.float().contiguous() for t in (weight, factor, metric, seen, zero)]
    best = scale.float().clone(memory_format=torch.contiguous_format)
    codes, errors = torch.empty(weight.shape, dtype=torch.uint8), torch.empty(weight.shape)

    def rows(first: int, last: int) -> None:
        library.hubquant_gptq_group(
            *map(_pointer, given), (c_float * len(times))(*times), c_int64(len(times)), c_int64(refits), c_float(max_code),
            c_int64(first), c_int64(last), c_int64(weight.shape[1]), *map(_pointer, (best, codes, errors)),
        )  # fmt: skip

    _each(rows, weight)
    return codes, errors, best


def descend(codes: Tensor, gradient: Tensor, hessian: Tensor, damp: Tensor, step: Tensor, top: int, sweeps: int) -> bool:
    """Whether codes and gradient [out, in] were worked on in place, under hessian [in, in]; damp [in], step [out, n_groups]."""
    library, matrices = _library(codes), (codes, gradient, hessian)
    if library is None or not all(m.is_contiguous() and m.dtype == torch.float32 for m in matrices):
        return False
    given = [t.float().contiguous() for t in (damp, step)]

    def rows(first: int, last: int) -> None:
        library.hubquant_descend(
            *map(_pointer, (*matrices, *given)), c_float(top), c_int64(sweeps), c_int64(first), c_int64(last),
            c_int64(codes.shape[1]), c_int64(step.shape[1]),
        )  # fmt: skip

    _each(rows, codes)
    return True


def grid_losses(weight: Tensor, metric: Tensor, scales: Tensor, zeros: Tensor, max_code: int) -> Tensor | None:
    """Σ ((Q(w) − w)·metric)² of weight [out, n] by row for each of k grids: scales, zeros and losses are [k, out]; metric [n]."""
    library = _library(weight)
    if library is None:
        return None
    given = [t.float().contiguous() for t in (weight, metric, scales, zeros)]
    losses = torch.empty(scales.shape)

    def rows(first: int, last: int) -> None:
        library.hubquant_grid_losses(
            *map(_pointer, given), c_float(max_code), c_int64(len(scales)), c_int64(len(weight)), c_int64(first),
            c_int64(last), c_int64(weight.shape[1]), _pointer(losses),
        )  # fmt: skip

    _each(rows, weight)
    return losses


def _library(matrix: Tensor) -> ctypes.CDLL | None:
    return native.columns() if matrix.device.type == "cpu" and matrix.numel() else None


def _pointer(tensor: Tensor | None) -> c_void_p:
    return c_void_p(None if tensor is None else tensor.data_ptr())


def _each(rows: Callable[[int, int], None], matrix: Tensor) -> None:
    """Calls `rows` with the first and the last row + 1 of every share, each in a thread of its own."""
    out = len(matrix)
    threads = min(torch.get_num_threads(), max(1, matrix.numel() // WEIGHTS_PER_THREAD))
    share = -(-out // (threads * SIDE_BY_SIDE)) * SIDE_BY_SIDE
    starts = range(0, out, share)
    if len(starts) == 1:
        rows(0, out)
        return
    with ThreadPoolExecutor(len(starts)) as pool:
        list(pool.map(rows, starts, (min(start + share, out) for start in starts)))
