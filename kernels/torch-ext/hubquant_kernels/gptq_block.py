"""GPTQ's column loop over one group of channels."""

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix


@torch.library.custom_op(add_op_namespace_prefix("gptq_block"), mutates_args=())
def gptq_block(weight: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    """Round weight [out, n] column by column; each column's error moves on to the columns after it.

    factor [n, n]: upper U with UᵀU the inverse Hessian's block; scale, zero [out, 1] float32.
    Returns codes [out, n] uint8 and errors [out, n] float32, (w − q)/U_ii, for the columns after this block.
    """
    rest = weight.T.clone(memory_format=torch.contiguous_format)  # [n, out]: a channel is one row of memory
    codes = torch.empty_like(rest, dtype=torch.uint8)
    errors = torch.empty_like(rest)
    step, origin = scale[:, 0], zero[:, 0]
    for i in range(rest.shape[0]):
        w = rest[i]
        code = torch.clamp(torch.round(w / step) + origin, 0, max_code)
        error = (w - (code - origin) * step) / factor[i, i]
        codes[i] = code.to(torch.uint8)
        errors[i] = error
        if i + 1 < rest.shape[0]:
            rest[i + 1 :].addr_(factor[i, i + 1 :], error, alpha=-1)
    return codes.T.contiguous(), errors.T.contiguous()


@gptq_block.register_fake
def _(weight: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight, dtype=torch.uint8), torch.empty_like(weight)
