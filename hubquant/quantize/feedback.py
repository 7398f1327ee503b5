"""GPTQ's error feedback (Frantar et al. 2022, arXiv 2210.17323) in the block types of GGUF.

Block by block of columns: the type's own encoder chooses the scales of what earlier blocks have left of the weights, under the
importance of the columns; then the codes are chosen column by column, each making up for the errors before it; and what the block
got wrong moves on to the blocks after it. Blocks, sub-blocks and columns are taken in the order of their importance. At last every
code is asked again, given all others (descent.py). Of types without a grid of their own (IQ1 to IQ3, ternary ones, MXFP4) the
encoder's codes stay, and the error moves on from block to block.
"""

import torch
from hubquant_kernels.ggml_grid import GRIDDED, BlockGrid, block_grid
from hubquant_kernels.gptq_block import gptq_block, gptq_codebook_block
from torch import Tensor

from hubquant.quantize.compensation import Compensation, Factor, strips
from hubquant.quantize.descent import ask_again, without_zeros
from hubquant.quantize.ggml import GgmlType, decode, encode, ggml_type, row_bytes
from hubquant.quantize.gptq import DAMP_RATIO, SWEEPS
from hubquant.quantize.order import channel_order

# columns between two updates of all that is left, and the sizes of sub-blocks, each a part of the one before
BLOCKS = (256, 128, 64, 32)
SUB_BLOCKS = (32, 16)
EXACT = ("F32", "F16", "BF16")


def block_factor(hessian: Tensor, damp_ratio: float = DAMP_RATIO) -> Factor:
    """The factor of a hessian [in, in] = Σxᵀx for columns by importance: blocks first, then sub-blocks inside these, then columns.

    Once for all matrices that read the input, whatever their types. Needs a width that has_blocks.
    """
    block = block_of(len(hessian))
    return Factor(hessian, channel_order(hessian.diagonal(), (block, *(b for b in SUB_BLOCKS if b < block))), damp_ratio)


def block_of(width: int) -> int:
    """How many columns of so many are rounded between two updates of all that is left."""
    return next(b for b in BLOCKS if width % b == 0)


def has_blocks(width: int) -> bool:
    """Whether columns of that number can be taken in blocks."""
    return width % BLOCKS[-1] == 0


def encode_with_feedback(weight: Tensor, type_name: str, factor: Factor, sweeps: int = SWEEPS) -> Tensor:
    """Weights [out, in], float → uint8 [out, row_bytes], with a small tr(ΔHΔᵀ) rather than a small Σ importance·error².

    `sweeps`: how often the codes are asked again, of types that have a grid. Raises what `encode` raises.
    """
    return encode_and_weigh(weight, type_name, factor, sweeps)[0]


def encode_and_weigh(weight: Tensor, type_name: str, factor: Factor, sweeps: int = SWEEPS) -> tuple[Tensor, Tensor]:
    """As encode_with_feedback, and the losses [out] float32: diag(ΔHΔᵀ), Δ = what is stored less the weights."""
    kind = ggml_type(type_name)
    data = torch.empty(len(weight), row_bytes(type_name, weight.shape[1]), dtype=torch.uint8, device=weight.device)
    losses = torch.empty(len(weight), device=weight.device)
    for rows in strips(weight):
        W = weight[rows].float()
        if type_name in EXACT:
            data[rows] = encode(weight[rows], type_name)
            error = W - decode(data[rows], type_name)
            losses[rows] = ((error @ factor.hessian) * error).sum(1)
        else:
            data[rows], gradient = _encode_rows(W, kind, factor, sweeps)
            losses[rows] = factor.losses(W - decode(data[rows], type_name), gradient)
    return data, losses


def _encode_rows(W: Tensor, kind: GgmlType, factor: Factor, sweeps: int) -> tuple[Tensor, Tensor]:
    """uint8 [out, row_bytes], and the gradient [out, in] of what is left."""
    size, compensation = block_of(W.shape[1]), Compensation(factor, len(W))
    importance = factor.hessian.diagonal() / factor.unit
    data = W.new_empty(W.shape[0], W.shape[1] // size, size // kind.block_size * kind.type_size, dtype=torch.uint8)
    for start in range(0, W.shape[1], size):
        block, place = compensation.block(start, start + size), int(factor.order[start]) // size
        inside = factor.order[start : start + size] - place * size
        here = slice(place * size, (place + 1) * size)
        target = block.target(W[:, here][:, inside])
        found = encode(target[:, inside.argsort()].contiguous(), kind.name, importance[here])
        if kind.name in GRIDDED:
            grid = block_grid(found.view(-1, kind.type_size), kind.name)
            codes, left = _choose_codes(target, block.inverse, grid, inside)
            found = grid.recode(codes.view(-1, kind.block_size)).view_as(found)
        else:
            left = (target - decode(found, kind.name)[:, inside]) @ block.metric
        data[:, place] = found
        compensation.carry(block, left)
    if sweeps and kind.name in GRIDDED:
        return _asked_again(data.view(-1, kind.type_size), kind.name, compensation, sweeps)
    return data.flatten(1), compensation.gradient()


def _asked_again(blocks: Tensor, type_name: str, left: Compensation, sweeps: int) -> tuple[Tensor, Tensor]:
    grid, rows = block_grid(blocks, type_name), len(left.ER)
    if grid.top is None:
        return blocks.view(rows, -1), left.gradient()
    step = grid.scale.view(rows, -1)
    codes = grid.codes.view(rows, -1).float()
    gradient = ask_again(codes, step, grid.top, left, sweeps)
    return grid.recode(codes.to(torch.uint8).view(len(blocks), -1)).view(rows, -1), gradient


def _choose_codes(left: Tensor, U: Tensor, grid: BlockGrid, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [out, n] of the columns in the order of the row, and Err [out, n] in the order of `inside`, the columns of `left`."""
    W, n = left.clone(), left.shape[1]
    scale = grid.scale.view(W.shape[0], -1)
    minimum = torch.zeros_like(scale) if grid.minimum is None else grid.minimum.view_as(scale)
    step = without_zeros(scale)
    codes, Err = torch.empty_like(W, dtype=torch.uint8), torch.empty_like(W)
    for a in range(0, n, grid.size):
        b, g = a + grid.size, int(inside[a]) // grid.size
        own = (W[:, a:b] + minimum[:, g, None], U[a:b, a:b].contiguous(), step[:, g, None])
        if grid.top is None:
            found, Err[:, a:b] = gptq_codebook_block(*own)
        else:
            zero = torch.full_like(own[2], grid.zero)
            found, Err[:, a:b] = gptq_block(*own, zero, grid.top)
        codes[:, inside[a:b]] = found
        W[:, b:] -= Err[:, a:b] @ U[a:b, b:]
    return codes, Err
