"""What rounding costs at a linear's output, from the Hessian of its input: of one error, and of each of several of AWQ's scales."""

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .dispatch import on_gpu
from .grid import group_range, round_to_grid

# columns whose products with all before them are summed at a time
BLOCK = 512


@torch.library.custom_op(add_op_namespace_prefix("quadratic_form"), mutates_args=())
def quadratic_form(delta: Tensor, hessian: Tensor) -> Tensor:
    """tr(ΔHΔᵀ) [] float32 for delta [out, in] float32 and hessian [in, in] float32, symmetric.

    Of each pair of columns that are not of one block one product is made, and counts twice.
    """
    total = delta.new_zeros(())
    for start in range(0, delta.shape[1], BLOCK):
        here, columns = delta[:, start : start + BLOCK], hessian[: start + BLOCK, start : start + BLOCK]
        products = torch.addmm(here @ columns[start:], delta[:, :start], columns[:start], alpha=2)
        total += (products * here).sum()
    return total


@quadratic_form.register_fake
def _(delta: Tensor, hessian: Tensor) -> Tensor:
    return delta.new_empty(())


@torch.library.custom_op(add_op_namespace_prefix("awq_losses"), mutates_args=())
def awq_losses(weight: Tensor, hessian: Tensor, scales: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    """tr(ΔHΔᵀ) for each of scales s [n, in], Δ = Q(W·s)/s − W, Q rounding to nearest by groups of `group_size`: [n] float32.

    weight [out, in] float32, in a multiple of group_size; hessian [in, in] float32 = Σxᵀx, symmetric.
    """
    return torch.stack([quadratic_form(rounding_error(weight, s, bits, group_size, symmetric), hessian) for s in scales])


@awq_losses.register_fake
def _(weight: Tensor, hessian: Tensor, scales: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    return weight.new_empty(scales.shape[0])


def rounding_error(weight: Tensor, s: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    """Δ [out, in] = Q(W·s)/s − W."""
    groups = (weight * s).view(weight.shape[0], -1, group_size)
    scale, zero = group_range(groups, bits, symmetric)
    codes = round_to_grid(groups, scale, zero, 2**bits - 1)
    return ((codes - zero) * scale).view_as(weight) / s - weight


on_gpu(quadratic_form, "awq_search")
on_gpu(awq_losses, "awq_search")
