"""GPTQ's column loop over one group of channels, with the group's scale given or searched, on a grid or on IQ4's codebook."""

import torch
from torch import Tensor

from . import native_columns
from ._ops import add_op_namespace_prefix
from .dispatch import on_gpu
from .ggml_codebook import VALUES, codebook, nearest_places
from .grid import fit_group, on_chip


@torch.library.custom_op(add_op_namespace_prefix("gptq_block"), mutates_args=())
def gptq_block(weight: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    """Round weight [out, n] column by column; each column's error moves on to the columns after it.

    factor [n, n]: upper U with UᵀU the inverse Hessian's block; scale, zero [out, 1] float32, or [out, n] where the columns are of
    several groups.
    Returns codes [out, n] uint8 and errors [out, n] float32, (w − q)/U_ii, for the columns after this block.
    A leading dimension of all of them is a batch of matrices: the experts of a layer.
    """
    if weight.dim() == 3:
        rounded = [gptq_block(*matrix, max_code) for matrix in zip(weight, factor, scale, zero, strict=True)]
        return torch.stack([codes for codes, _ in rounded]), torch.stack([errors for _, errors in rounded])
    of_one_group = scale.shape[1] == 1  # which is all that the compiled loop knows
    if of_one_group and (fast := native_columns.gptq_block(weight, factor, scale, zero, max_code + 1)) is not None:
        return fast
    rest = weight.T.clone(memory_format=torch.contiguous_format)  # [n, out]: a channel is one row of memory
    codes = torch.empty_like(rest, dtype=torch.uint8)
    errors = torch.empty_like(rest)
    for i in range(rest.shape[0]):
        w, step, origin = rest[i], scale[:, i % scale.shape[1]], zero[:, i % zero.shape[1]]
        code = torch.clamp(torch.round(w / step) + origin, 0, max_code)
        error = (w - (code - origin) * step) / factor[i, i]
        codes[i] = code.to(torch.uint8)
        errors[i] = error
        if i + 1 < rest.shape[0]:
            rest[i + 1 :].addr_(factor[i, i + 1 :], error, alpha=-1)
    return codes.T.contiguous(), errors.T.contiguous()


@gptq_block.register_fake
def _(weight: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape, dtype=torch.uint8), weight.new_empty(weight.shape)


def gptq_codebook_block(weight: Tensor, factor: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """`gptq_block` of weight [out, n] where a code is a place in IQ4's codebook, whose values the scale [out, 1] multiplies."""
    if (fast := native_columns.gptq_block(weight, factor, scale, None, len(VALUES), VALUES)) is not None:
        return fast
    rest, values, step = weight.T.clone(memory_format=torch.contiguous_format), codebook(weight.device), scale[:, 0]
    codes, errors = torch.empty_like(rest, dtype=torch.uint8), torch.empty_like(rest)
    for i, w in enumerate(rest):
        codes[i] = nearest_places(w / step)
        errors[i] = (w - values[codes[i].long()] * step) / factor[i, i]
        rest[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
    return codes.T.contiguous(), errors.T.contiguous()


@torch.library.custom_op(add_op_namespace_prefix("gptq_group"), mutates_args=())
def gptq_group(
    weight: Tensor, factor: Tensor, metric: Tensor, seen: Tensor, bits: int, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`fit_group` under `metric` [n, n], then `gptq_block` with the scale and zero found; all may have a leading batch dimension.

    seen [n] bool: channels that have no say in the scale are False. Returns codes, errors [out, n], scale, zero [out, 1].
    On a GPU that is two kernels, of which either alone keeps more warps at work.
    """
    scale, zero = fit_group(weight * seen[..., None, :], metric, bits, symmetric)
    codes, errors = gptq_block(weight, factor, scale, zero, 2**bits - 1)
    return codes, errors, scale, zero


@gptq_group.register_fake
def _(
    weight: Tensor, factor: Tensor, metric: Tensor, seen: Tensor, bits: int, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    column = (*weight.shape[:-1], 1)
    codes = weight.new_empty(weight.shape, dtype=torch.uint8)
    return codes, weight.new_empty(weight.shape), weight.new_empty(column), weight.new_empty(column)


on_gpu(gptq_block, "gptq_block", accepts=lambda weight, factor, scale, *rest: on_chip(weight) and scale.shape[-1] == 1)
