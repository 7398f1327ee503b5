"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round channel by channel, let later channels make up for each error.

What differs from the paper: channels are taken in order of importance without leaving their groups (whole groups first,
then channels inside a group), so no g_idx has to be stored; a group's scale is searched under the error that remains
after compensation; damping rises until the Cholesky factorization succeeds; afterwards codes and scales are asked again, each
given all others (descent.py).
"""

import torch
from hubquant_kernels.gptq_block import gptq_group
from torch import Tensor

from hubquant.quantize.compensation import Compensation, ordered_factor
from hubquant.quantize.descent import Codes, damping, descend
from hubquant.quantize.grid import Grid, QuantizedWeight
from hubquant.quantize.order import channel_order

# Of the diagonal's mean. Held-out KL divergence of the bundled model, W4g128: 0.0159 at 0.05, 0.0130 at 0.01 (`make ablation`).
DAMP_RATIO = 0.01
SWEEPS = 3
LARGEST_SCALE = torch.finfo(torch.float16).max


def solve(weight: Tensor, hessian: Tensor, grid: Grid, damp_ratio: float = DAMP_RATIO, sweeps: int = SWEEPS) -> QuantizedWeight:
    """Quantize weight [out, in] under hessian [in, in] = Σxᵀx; in is a multiple of grid.group_size.

    Channels without any activation (zero diagonal) have no say in the scale of their group and are rounded to it. A group
    without any, or an all-zero hessian, is rounded to nearest. Weights that no float16 scale reaches are clipped. `sweeps`: how
    often codes and scales are asked again.
    """
    order = channel_order(hessian.diagonal(), (grid.group_size,))
    limit = LARGEST_SCALE * grid.middle
    W, seen = weight.float().clamp(-limit, limit), hessian.diagonal()[order] > 0
    compensation = Compensation(ordered_factor(hessian, order, damp_ratio), len(W))
    n_groups = W.shape[1] // grid.group_size
    codes = torch.empty_like(W, dtype=torch.uint8)
    scales, zeros = W.new_empty(W.shape[0], n_groups), W.new_empty(W.shape[0], n_groups)
    for start in range(0, W.shape[1], grid.group_size):
        block = compensation.block(start, start + grid.group_size)
        places, seen_here = order[block.start : block.end], seen[block.start : block.end]
        seen_here = seen_here if bool(seen_here.any()) else ~seen_here
        target = block.target(W[:, places])
        found, left, scale, zero = gptq_group(target, block.factor, block.metric, seen_here, grid.bits, grid.symmetric)
        group = int(places[0]) // grid.group_size
        scales[:, group], zeros[:, group] = scale[:, 0], zero[:, 0]
        codes[:, places] = found
        compensation.carry(block, left)
    del compensation
    if sweeps and bool(seen.any()):
        scales = scales.half().float()
        asked = Codes(codes.float(), scales, -zeros * scales, grid.max_code)
        descend(W, asked, hessian, damping(hessian, damp_ratio), sweeps, zeros)
        codes, scales = asked.codes.to(torch.uint8), asked.step
    return QuantizedWeight(codes, scales.half(), zeros.to(torch.uint8), grid)


def damp_ratio_for(width: int, n_tokens: int) -> float:
    """More damping for a hessian [width, width] of few tokens, whose eigenvalues are off by the order of width/n_tokens."""
    return DAMP_RATIO * (1 + width / max(n_tokens, 1))
