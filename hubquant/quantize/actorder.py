"""GPTQ with its channels in the order of their importance across the borders of groups ("act order", `desc_act`).

Two ways. `solve_regrouped`: groups are stretches of channels in that order, so that channels of like importance share a scale; the
file must say which channel is of which group (g_idx), and kernels pay for it. `solve_static`: the scales of all groups are found
before the loop ("static groups"), so that groups stay where they are and nothing has to be said; also the way for a whole row as
one group. What differs there from the usual range of a group: scales are searched for the error that remains of a rounding once
later channels made up for it.
"""

import torch
from hubquant_kernels.gptq_block import gptq_block
from hubquant_kernels.grid import fit_group
from torch import Tensor

from hubquant.quantize.compensation import Compensation, Factor, strips
from hubquant.quantize.descent import ask_again
from hubquant.quantize.gptq import DAMP_RATIO, LARGEST_SCALE, SWEEPS, solve
from hubquant.quantize.grid import Grid, QuantizedWeight, on_grid
from hubquant.quantize.order import channel_order

BLOCK = 128  # channels between two updates of the rest


def solve_regrouped(weight: Tensor, hessian: Tensor, grid: Grid, damp_ratio: float = DAMP_RATIO) -> QuantizedWeight:
    """Quantize weight [out, in] under hessian [in, in] = Σxᵀx with groups of channels of like importance."""
    order = channel_order(hessian.diagonal())
    solved = solve(weight[:, order], hessian[order][:, order], grid, damp_ratio)
    place = order.argsort()
    return QuantizedWeight(solved.codes[:, place], solved.scales, solved.zeros, grid, solved.group_index[place], solved.losses)


def solve_static(
    weight: Tensor, hessian: Tensor, grid: Grid, damp_ratio: float = DAMP_RATIO, sweeps: int = SWEEPS
) -> QuantizedWeight:
    """Quantize weight [out, in] under hessian [in, in] = Σxᵀx with groups of channels as they come, found before the loop.

    Channels without any activation have no say in the scale of their group, as in `gptq.solve`. `sweeps`: how often codes are
    asked again.
    """
    factor = Factor(hessian, channel_order(hessian.diagonal()), damp_ratio)
    order, limit = factor.order, LARGEST_SCALE * grid.middle
    W = weight.float().clamp(-limit, limit)
    remaining = torch.empty_like(factor.damp)
    # what a channel's rounding adds to the loss: (w − q)·R_jj, squared
    remaining[order] = factor.live[order] * factor.R.diagonal()
    scales, zeros = _scales(W, remaining, grid)
    codes, losses = torch.empty_like(W, dtype=torch.uint8), W.new_empty(len(W))
    for rows in strips(W):
        codes[rows], losses[rows] = _round(W[rows], scales[rows], zeros[rows], factor, grid, sweeps)
    return QuantizedWeight(codes, scales.half(), zeros.to(torch.uint8), grid, losses=losses)


def _round(W: Tensor, scales: Tensor, zeros: Tensor, factor: Factor, grid: Grid, sweeps: int) -> tuple[Tensor, Tensor]:
    """Codes [out, in], float32, on the groups' scales and zeros [out, n_groups], and losses [out]."""
    compensation, codes = Compensation(factor, len(W)), torch.empty_like(W)
    for start in range(0, W.shape[1], BLOCK):
        block = compensation.block(start, min(start + BLOCK, W.shape[1]))
        places = factor.order[block.start : block.end]
        scale, zero = scales[:, places // grid.group_size], zeros[:, places // grid.group_size]
        found, left = gptq_block(block.target(W[:, places]), block.inverse, scale, zero, grid.max_code)
        codes[:, places] = found.float()
        compensation.carry(block, left)
    gradient = ask_again(codes, scales, grid.max_code, compensation, sweeps)
    return codes, factor.losses(W - on_grid(codes, scales, zeros), gradient)


def _scales(W: Tensor, remaining: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scales and zeros [out, n_groups] of groups in order. `remaining` [in]: what a unit of each channel's error costs."""
    found = []
    for channels in torch.arange(W.shape[1], device=W.device).split(grid.group_size):
        metric = remaining[channels]
        metric = metric if bool(metric.any()) else torch.ones_like(metric)
        weights = W[:, channels] * (metric > 0)
        found.append(fit_group(weights, metric, grid.bits, grid.symmetric))
    return torch.cat([scale for scale, _ in found], 1), torch.cat([zero for _, zero in found], 1)
