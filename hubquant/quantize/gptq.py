"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round channel by channel, let later channels make up for each error.

What differs from the paper: channels are taken in order of importance without leaving their groups (whole groups first,
then channels inside a group), so no g_idx has to be stored; several scales of a group are tried, by the error that is left
after compensation; damping rises until the Cholesky factorization succeeds; afterwards codes are asked again, each given all
others (descent.py).
"""

import torch
from hubquant_kernels.gptq_block import gptq_group
from torch import Tensor

from hubquant.quantize.compensation import Compensation, Factor, strips
from hubquant.quantize.descent import ask_again
from hubquant.quantize.grid import Grid, QuantizedWeight, on_grid
from hubquant.quantize.order import channel_order

# Of the diagonal's mean. Held-out KL divergence of the bundled model, W4g128: 0.0151 at 0.05, 0.0126 at 0.01 (`make ablation`).
DAMP_RATIO = 0.01
SWEEPS = 6
LARGEST_SCALE = torch.finfo(torch.float16).max


def solve(weight: Tensor, hessian: Tensor, grid: Grid, damp_ratio: float = DAMP_RATIO, sweeps: int = SWEEPS) -> QuantizedWeight:
    """Quantize weight [out, in] under hessian [in, in] = Σxᵀx; in is a multiple of grid.group_size.

    Channels without any activation (zero diagonal) have no say in the scale of their group and are rounded to it. A group
    without any, or an all-zero hessian, is rounded to nearest. Weights that no float16 scale reaches are clipped, which is not in
    the losses. `sweeps`: how often codes are asked again.
    """
    factor = Factor(hessian, channel_order(hessian.diagonal(), (grid.group_size,)), damp_ratio)
    out, n_groups = weight.shape[0], weight.shape[1] // grid.group_size
    codes = torch.empty_like(weight, dtype=torch.uint8)
    scales, zeros = (torch.empty(out, n_groups, dtype=t, device=weight.device) for t in (torch.float16, torch.uint8))
    losses = weight.new_empty(out, dtype=torch.float32)
    for rows in strips(weight):
        codes[rows], scales[rows], zeros[rows], losses[rows] = _solve_rows(weight[rows], factor, grid, sweeps)
    return QuantizedWeight(codes, scales, zeros, grid, losses=losses)


def _solve_rows(weight: Tensor, factor: Factor, grid: Grid, sweeps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes [out, in], scales and zeros [out, n_groups] as float32, and losses [out]."""
    limit = LARGEST_SCALE * grid.middle
    W, seen = weight.float().clamp(-limit, limit), factor.live[factor.order]
    compensation, codes = Compensation(factor, len(W)), torch.empty_like(W)
    scales, zeros = (W.new_empty(len(W), W.shape[1] // grid.group_size) for _ in range(2))
    for start in range(0, W.shape[1], grid.group_size):
        block = compensation.block(start, start + grid.group_size)
        places, seen_here = factor.order[block.start : block.end], seen[block.start : block.end]
        seen_here = seen_here if bool(seen_here.any()) else ~seen_here
        target = block.target(W[:, places])
        found, left, scale, zero = gptq_group(target, block.inverse, block.metric, seen_here, grid.bits, grid.symmetric)
        group = int(places[0]) // grid.group_size
        scales[:, group], zeros[:, group] = scale[:, 0], zero[:, 0]
        codes[:, places] = found.float()
        compensation.carry(block, left)
    gradient = ask_again(codes, scales, grid.max_code, compensation, sweeps)
    error = W - on_grid(codes, scales, zeros)
    return codes, scales, zeros, factor.losses(error, gradient)


def damp_ratio_for(width: int, n_tokens: int) -> float:
    """More damping for a hessian [width, width] of few tokens, whose eigenvalues are off by the order of width/n_tokens."""
    return DAMP_RATIO * (1 + width / max(n_tokens, 1))
