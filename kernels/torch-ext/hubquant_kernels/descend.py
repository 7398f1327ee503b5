"""Sweeps of coordinate descent over the codes of a matrix: each code is chosen again, given all others."""

import torch
from torch import Tensor

from . import native_columns
from ._ops import add_op_namespace_prefix
from .dispatch import on_gpu
from .grid import on_chip

SMALLEST = torch.finfo(torch.float32).tiny  # the inverse of what is smaller may be infinite
# columns of which codes are chosen before the gradient of all others follows
BLOCK = 128


def descend(codes: Tensor, gradient: Tensor, hessian: Tensor, damp: Tensor, step: Tensor, top: int, sweeps: int) -> None:
    """Choose the codes [out, in], whole numbers 0..top as float32, again `sweeps` times, one column after the other, in place.

    gradient [out, in] float32: the errors of the weights times hessian [in, in] + diag(damp [in]); it follows. Where the diagonal
    of that sum is no normal number the codes stay. step [out, n_groups], not zero: by how much a weight moves with its code. On a
    CPU the time goes by how many codes move; on a GPU a block of columns is one launch and one product.
    """
    if native_columns.descend(codes, gradient, hessian, damp, step, top, sweeps):
        return
    group_size = codes.shape[1] // step.shape[1]
    for _ in range(sweeps):
        for columns in torch.arange(codes.shape[1], device=codes.device).split(BLOCK):
            here = slice(int(columns[0]), int(columns[-1]) + 1)
            steps = step[:, columns // group_size]
            found = descend_block(codes[:, here], gradient[:, here], hessian[here, here] + torch.diag(damp[here]), steps, top)
            moved = (found - codes[:, here]) * steps
            codes[:, here] = found
            gradient.addmm_(moved, hessian[here], alpha=-1)
            gradient[:, here].sub_(moved * damp[here])


@torch.library.custom_op(add_op_namespace_prefix("descend_block"), mutates_args=())
def descend_block(codes: Tensor, gradient: Tensor, hessian: Tensor, step: Tensor, top: int) -> Tensor:
    """New codes [out, n] float32 for these, chosen one column after the other from their gradient [out, n] under hessian [n, n],
    which is damped. step [out, n]: by how much a weight moves with its code."""
    rest, G, steps = (t.T.clone(memory_format=torch.contiguous_format) for t in (codes, gradient, step))
    diagonal = hessian.diagonal()
    gain = torch.where(diagonal >= SMALLEST, 1 / diagonal, 0)
    for i, old in enumerate(rest):
        new = (old + G[i] * gain[i] / steps[i]).round_().clamp_(0, top)
        G.addr_(hessian[i], (new - old) * steps[i], alpha=-1)
        old.copy_(new)
    return rest.T.contiguous()


@descend_block.register_fake
def _(codes: Tensor, gradient: Tensor, hessian: Tensor, step: Tensor, top: int) -> Tensor:
    return codes.new_empty(codes.shape)


on_gpu(descend_block, "descend", accepts=on_chip)
