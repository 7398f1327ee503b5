"""AWQ's two older layouts, GEMV and GEMV fast (AutoAWQ's names), decoded. Nothing new is written in them.

Both keep the rows of the weight together and pad the groups so that the zeros of a row fill whole blocks of words.
"""

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .pack import unpack_words

BITS = 4
ROWS = 4  # of the weight, interleaved in GEMV fast
STRIDE = 64  # channels of a row that lie together there


def padded_groups(in_features: int, group_size: int) -> int:
    """Groups of a row with padding: whole words of eight, and for groups below 128 as many words as cover 1024 channels.

    Raises ValueError for a group size that the layouts do not have.
    """
    words_in_block = {16: 8, 32: 4, 64: 2}.get(group_size, 1 if group_size >= 128 else 0)
    if not words_in_block:
        raise ValueError(f"AWQ's GEMV layouts have groups of 16, 32, 64 or at least 128 channels, not {group_size}")
    words = -(-(in_features // group_size) // 8)
    return -(-words // words_in_block) * words_in_block * 8


@torch.library.custom_op(add_op_namespace_prefix("dequantize_awq_gemv"), mutates_args=())
def dequantize_awq_gemv(qweight: Tensor, qzeros: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """[out, in] float32. qweight [out, in/8] int32, qzeros [out, padded groups / 8] int32, scales [out, padded groups]."""
    codes = unpack_words(qweight, BITS).float()
    group = torch.arange(codes.shape[1], device=codes.device) // group_size
    return (codes - unpack_words(qzeros, BITS).float()[:, group]) * scales.float()[:, group]


@dequantize_awq_gemv.register_fake
def _(qweight: Tensor, qzeros: Tensor, scales: Tensor, group_size: int) -> Tensor:
    return qweight.new_empty((qweight.shape[0], qweight.shape[1] * 8), dtype=torch.float32)


@torch.library.custom_op(add_op_namespace_prefix("dequantize_awq_gemv_fast"), mutates_args=())
def dequantize_awq_gemv_fast(qweight: Tensor, qzeros: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """[out, in] float32. qweight [out/4, in] int16; scales and qzeros [padded groups, out], where qzeros hold −scale·zero."""
    blocks = qweight.shape[0], qweight.shape[1] // STRIDE, STRIDE
    nibbles = qweight.view(*blocks)[..., None] >> torch.arange(0, 16, BITS, device=qweight.device, dtype=torch.int16) & 15
    rows = nibbles.reshape(*blocks[:2], ROWS, STRIDE).transpose(1, 2).reshape(ROWS * qweight.shape[0], -1)
    # 32 channels lie as [b, c, a], where channel 8a + 2b + c is meant
    codes = rows.view(rows.shape[0], -1, 4, 2, 4).permute(0, 1, 4, 2, 3).reshape(rows.shape).float()
    group = torch.arange(codes.shape[1], device=codes.device) // group_size
    return codes * scales.T.float()[:, group] + qzeros.T.float()[:, group]


@dequantize_awq_gemv_fast.register_fake
def _(qweight: Tensor, qzeros: Tensor, scales: Tensor, group_size: int) -> Tensor:
    return qweight.new_empty((qweight.shape[0] * ROWS, qweight.shape[1]), dtype=torch.float32)
