"""One sweep of coordinate descent over some columns of codes: each code is chosen again, given all others."""

import torch
from torch import Tensor

from . import native_columns


def descend_block(codes: Tensor, gradient: Tensor, hessian: Tensor, step: Tensor, top: int) -> Tensor:
    """New codes [out, n] for codes [out, n], whole numbers 0..top as float32, one column after the other.

    gradient [out, n]: the error of the weights times the hessian's columns; hessian [n, n]: where its diagonal is zero the
    codes stay; step [out, n], not zero: by how much a weight moves with its code.
    """
    if (fast := native_columns.descend_block(codes, gradient, hessian, step, top)) is not None:
        return fast
    rest, G, steps = (t.T.clone(memory_format=torch.contiguous_format) for t in (codes, gradient, step))
    diagonal = hessian.diagonal()
    gain = torch.where(diagonal > 0, 1 / diagonal, 0)
    for i, old in enumerate(rest):
        new = (old + G[i] * gain[i] / steps[i]).round_().clamp_(0, top)
        G.addr_(hessian[i], (new - old) * steps[i], alpha=-1)
        old.copy_(new)
    return rest.T.contiguous()
