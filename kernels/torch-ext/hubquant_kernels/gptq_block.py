"""GPTQ's column loop over one group of channels, with the group's scale given or searched, on a grid or on IQ4's codebook."""

import torch
from torch import Tensor

from . import native_columns
from ._ops import add_op_namespace_prefix
from .dispatch import on_gpu
from .ggml_codebook import VALUES, codebook, nearest_places
from .grid import fit_group, on_chip, storable

# Of the scale that fit_group finds, and how often the best of them is fitted anew. Error of GPTQ's output, W4g128 and W3g128 of
# SmolLM2-135M, in the end: 0.987 of that with the found scale alone, all scales of a row fitted afterwards; 0.990 with 0.97 and
# 1.03 only, 0.996 with fitting only.
TRIED = (1.0, 0.94, 0.97, 1.03, 1.06)
REFITS = 2


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


@torch.library.custom_op(add_op_namespace_prefix("gptq_codebook_block"), mutates_args=())
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


@gptq_codebook_block.register_fake
def _(weight: Tensor, factor: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape, dtype=torch.uint8), weight.new_empty(weight.shape)


@torch.library.custom_op(add_op_namespace_prefix("gptq_group"), mutates_args=())
def gptq_group(
    weight: Tensor, factor: Tensor, metric: Tensor, seen: Tensor, bits: int, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale and zero of a group, and its columns rounded by `gptq_block` to them; all may have a leading batch dimension.

    metric [n, n]: upper, the inverse of the factor; its diagonal is what a column's rounding costs. seen [n] bool: channels that
    have no say in the scale are False. The scale of `fit_group`, some near it, and the one that least squares find for the best
    codes so far are tried, by what is left after error feedback. Returns codes, errors [out, n], scale, zero [out, 1].
    """
    scale, zero = fit_group(weight * seen[..., None, :], metric.diagonal(dim1=-2, dim2=-1), bits, symmetric)
    if weight.dim() == 2:
        fast = native_columns.gptq_group(weight, factor, metric, seen, scale, zero, 2**bits - 1, TRIED, REFITS)
        if fast is not None:
            return *fast, zero
    seen = seen[..., None, :]
    found = _Rounded(weight, factor, zero, seen, 2**bits - 1)
    for times in TRIED:
        found.try_scale(storable(scale * times))
    wanted = (weight * seen) @ metric
    for _ in range(REFITS):
        levels = ((found.codes - zero) * seen) @ metric
        norm = levels.square().sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        found.try_scale(storable((wanted * levels).sum(-1, keepdim=True) / norm))
    return found.codes.to(torch.uint8), found.errors, found.scale, zero


class _Rounded:
    """The best of the roundings of weight [..., out, n] that were tried, row by row, by the squares of their errors where seen."""

    def __init__(self, weight: Tensor, factor: Tensor, zero: Tensor, seen: Tensor, max_code: int) -> None:
        self._given, self._seen = (weight, factor, zero, max_code), seen
        self.loss, self.scale = torch.full_like(zero, torch.inf), torch.ones_like(zero)
        self.codes, self.errors = torch.zeros_like(weight), torch.zeros_like(weight)  # which stay where a loss is no number

    def try_scale(self, scale: Tensor) -> None:
        weight, factor, zero, max_code = self._given
        codes, errors = gptq_block(weight, factor, scale, zero, max_code)
        loss = (errors.square() * self._seen).sum(-1, keepdim=True)
        better = loss < self.loss
        for kept, new in ((self.loss, loss), (self.scale, scale), (self.codes, codes), (self.errors, errors)):
            kept.copy_(torch.where(better, new, kept))


@gptq_group.register_fake
def _(
    weight: Tensor, factor: Tensor, metric: Tensor, seen: Tensor, bits: int, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    column = (*weight.shape[:-1], 1)
    codes = weight.new_empty(weight.shape, dtype=torch.uint8)
    return codes, weight.new_empty(weight.shape), weight.new_empty(column), weight.new_empty(column)


on_gpu(gptq_block, "gptq_block", accepts=lambda weight, factor, scale, *rest: on_chip(weight) and scale.shape[-1] == 1)
on_gpu(gptq_codebook_block, "gptq_block", accepts=on_chip)
