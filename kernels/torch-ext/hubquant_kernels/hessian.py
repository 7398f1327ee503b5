"""Σ xᵀx of a linear's inputs, in true float32."""

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .dispatch import on_gpu

# columns of which sums are taken at a time on a CPU
BLOCK = 256


@torch.library.custom_op(add_op_namespace_prefix("accumulate_hessian"), mutates_args=("hessian",))
def accumulate_hessian(hessian: Tensor, x: Tensor) -> None:
    """hessian [in, in] float32, symmetric, += xᵀ x for x [tokens, in] of any float dtype.

    Products and sums are float32: TF32 would lose the small eigenvalues that GPTQ's inverse is made of.
    """
    rows = x.float()
    if x.is_cuda:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        hessian.addmm_(rows.T, rows)
        torch.backends.cuda.matmul.allow_tf32 = before
        return
    for start in range(0, len(hessian), BLOCK):  # what stands above the diagonal is what stands below it
        here, before_here = slice(start, start + BLOCK), slice(0, start)
        hessian[here, : start + BLOCK].addmm_(rows[:, here].T, rows[:, : start + BLOCK])
        hessian[before_here, here] = hessian[here, before_here].T


@accumulate_hessian.register_fake
def _(hessian: Tensor, x: Tensor) -> None:
    torch._check(hessian.shape[0] == x.shape[-1])


on_gpu(accumulate_hessian, "hessian")
