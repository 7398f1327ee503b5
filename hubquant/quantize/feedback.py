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

from hubquant.quantize.compensation import Compensation, ordered_factor
from hubquant.quantize.descent import Codes, damping, descend, without_zeros
from hubquant.quantize.ggml import decode, encode, ggml_type
from hubquant.quantize.gptq import DAMP_RATIO, SWEEPS
from hubquant.quantize.order import channel_order

# columns between two updates of all that is left, and the sizes of sub-blocks, each a part of the one before
BLOCKS = (256, 128, 64, 32)
SUB_BLOCKS = (32, 16)
EXACT = ("F32", "F16", "BF16")


class Factor:
    """What error feedback needs of a hessian [in, in] = Σxᵀx, once for all matrices that read the input, whatever their types.

    order: the columns by importance, blocks first, then sub-blocks inside blocks, then columns. R: upper, RRᵀ = H in that order.
    importance: the hessian's diagonal, in the order of the row, as part of the largest. damp [in]: what is added to the diagonal.
    Needs a width that has_blocks.
    """

    def __init__(self, hessian: Tensor, damp_ratio: float = DAMP_RATIO) -> None:
        self.block = next(b for b in BLOCKS if hessian.shape[0] % b == 0)
        self.order = channel_order(hessian.diagonal(), (self.block, *(b for b in SUB_BLOCKS if b < self.block)))
        self.hessian, self.damp = hessian, damping(hessian, damp_ratio)
        self.importance = hessian.diagonal() / hessian.diagonal().amax()
        self.R = ordered_factor(hessian, self.order, damp_ratio)


def has_blocks(width: int) -> bool:
    """Whether columns of that number can be taken in blocks."""
    return width % BLOCKS[-1] == 0


def encode_with_feedback(weight: Tensor, type_name: str, factor: Factor, sweeps: int = SWEEPS) -> Tensor:
    """Weights [out, in], float → uint8 [out, row_bytes], with a small tr(ΔHΔᵀ) rather than a small Σ importance·error².

    `sweeps`: how often the codes are asked again, of types that have a grid. Raises what `encode` raises.
    """
    kind = ggml_type(type_name)
    if type_name in EXACT:
        return encode(weight, type_name)
    size, W = factor.block, weight.float()
    compensation = Compensation(factor.R, len(W))
    data = W.new_empty(W.shape[0], W.shape[1] // size, size // kind.block_size * kind.type_size, dtype=torch.uint8)
    for start in range(0, W.shape[1], size):
        block, place = compensation.block(start, start + size), int(factor.order[start]) // size
        inside = factor.order[start : start + size] - place * size
        here = slice(place * size, (place + 1) * size)
        target = block.target(W[:, here][:, inside])
        found = encode(target[:, inside.argsort()].contiguous(), type_name, factor.importance[here])
        if type_name in GRIDDED:
            grid = block_grid(found.view(-1, kind.type_size), type_name)
            codes, left = _choose_codes(target, block.factor, grid, inside)
            found = grid.recode(codes.view(-1, kind.block_size)).view_as(found)
        else:
            left = (target - decode(found, type_name)[:, inside]) @ block.metric
        data[:, place] = found
        compensation.carry(block, left)
    del compensation
    if sweeps and type_name in GRIDDED:
        return _asked_again(W, data.view(-1, kind.type_size), type_name, factor, sweeps)
    return data.flatten(1)


def _asked_again(weight: Tensor, blocks: Tensor, type_name: str, factor: Factor, sweeps: int) -> Tensor:
    grid = block_grid(blocks, type_name)
    if grid.top is None:
        return blocks.view(len(weight), -1)
    step = grid.scale.view(len(weight), -1)
    offset = -grid.zero * step if grid.minimum is None else -grid.minimum.view_as(step)
    found = Codes(grid.codes.view_as(weight).float(), step, offset, grid.top)
    descend(weight, found, factor.hessian, factor.damp, sweeps)
    return grid.recode(found.codes.to(torch.uint8).view(len(blocks), -1)).view(len(weight), -1)


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
