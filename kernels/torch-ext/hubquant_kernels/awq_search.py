"""What AWQ's channel scales cost: the error of a linear's output for each of several scales, from the Hessian of its input."""

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .dispatch import on_gpu
from .grid import group_range, round_to_grid


@torch.library.custom_op(add_op_namespace_prefix("awq_losses"), mutates_args=())
def awq_losses(weight: Tensor, hessian: Tensor, scales: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    """tr(ΔHΔᵀ) for each of scales s [n, in], Δ = Q(W·s)/s − W, Q rounding to nearest by groups of `group_size`: [n] float32.

    weight [out, in] float32, in a multiple of group_size; hessian [in, in] float32 = Σxᵀx, symmetric.
    """
    losses = []
    for s in scales:
        delta = rounding_error(weight, s, bits, group_size, symmetric)
        losses.append(((delta @ hessian) * delta).sum())
    return torch.stack(losses)


@awq_losses.register_fake
def _(weight: Tensor, hessian: Tensor, scales: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    return weight.new_empty(scales.shape[0])


def rounding_error(weight: Tensor, s: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    """Δ [out, in] = Q(W·s)/s − W."""
    groups = (weight * s).view(weight.shape[0], -1, group_size)
    scale, zero = group_range(groups, bits, symmetric)
    codes = round_to_grid(groups, scale, zero, 2**bits - 1)
    return ((codes - zero) * scale).view_as(weight) / s - weight


on_gpu(awq_losses, "awq_search")
