"""From the bytes of ggml's block types back to float32: d·q, d·q + m, or d·sc·q − dmin·m, in ggml's order of operations."""

from collections.abc import Callable

import torch
from torch import Tensor

from . import mxfp4
from ._ops import add_op_namespace_prefix
from .dispatch import on_gpu
from .ggml_codebook import codebook
from .ggml_layout import (
    half,
    unpack_bit32,
    unpack_iq4_xs,
    unpack_nibbles,
    unpack_q2_k,
    unpack_q3_k,
    unpack_q4_k,
    unpack_q5_k,
    unpack_q6_k,
    unpack_tq1_0,
    unpack_tq2_0,
)
from .ggml_types import GGML_TYPES

CHUNK_WEIGHTS = 1 << 20


def _f32(data: Tensor) -> Tensor:
    return data.contiguous().view(torch.float32)


def _f16(data: Tensor) -> Tensor:
    return data.contiguous().view(torch.float16).float()


def _bf16(data: Tensor) -> Tensor:
    return data.contiguous().view(torch.bfloat16).float()


def _q8_0(data: Tensor) -> Tensor:
    return half(data[:, :2]).float() * data[:, 2:].contiguous().view(torch.int8).float()


def _q4_0(data: Tensor) -> Tensor:
    return half(data[:, :2]).float() * (unpack_nibbles(data[:, 2:], 16).float() - 8)


def _q4_1(data: Tensor) -> Tensor:
    return half(data[:, :2]).float() * unpack_nibbles(data[:, 4:], 16).float() + half(data[:, 2:4]).float()


def _q5_0(data: Tensor) -> Tensor:
    codes = unpack_nibbles(data[:, 6:], 16) | (unpack_bit32(data[:, 2:6]) << 4)
    return half(data[:, :2]).float() * (codes.float() - 16)


def _q5_1(data: Tensor) -> Tensor:
    codes = unpack_nibbles(data[:, 8:], 16) | (unpack_bit32(data[:, 4:8]) << 4)
    return half(data[:, :2]).float() * codes.float() + half(data[:, 2:4]).float()


def _affine_k(fields: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    d, dmin, sc, m, codes = fields
    scale = (d.float() * sc.float())[:, :, None]
    minimum = (dmin.float() * m.float())[:, :, None]
    return (scale * codes.view(len(codes), sc.shape[1], -1).float() - minimum).view(len(codes), -1)


def _q4_k(data: Tensor) -> Tensor:
    return _affine_k(unpack_q4_k(data))


def _q5_k(data: Tensor) -> Tensor:
    return _affine_k(unpack_q5_k(data))


def _q6_k(data: Tensor) -> Tensor:
    d, sc, codes = unpack_q6_k(data)
    scale = (d.float() * sc.float())[:, :, None]
    return (scale * (codes.view(len(codes), 16, 16).float() - 32)).view(len(codes), -1)


def _q2_k(data: Tensor) -> Tensor:
    return _affine_k(unpack_q2_k(data))


def _q3_k(data: Tensor) -> Tensor:
    d, sc, codes = unpack_q3_k(data)
    scale = (d.float() * sc.float())[:, :, None]
    return (scale * (codes.view(len(codes), 16, 16).float() - 4)).view(len(codes), -1)


def _iq4_nl(data: Tensor) -> Tensor:
    return half(data[:, :2]).float() * codebook(data.device)[unpack_nibbles(data[:, 2:], 16).long()]


def _iq4_xs(data: Tensor) -> Tensor:
    d, sc, codes = unpack_iq4_xs(data)
    scale = (d.float() * sc.float())[:, :, None]
    return (scale * codebook(data.device)[codes.view(len(codes), 8, 32).long()]).view(len(codes), -1)


def _ternary(fields: tuple[Tensor, Tensor]) -> Tensor:
    d, codes = fields
    return d.float() * (codes.float() - 1)


def _tq1_0(data: Tensor) -> Tensor:
    return _ternary(unpack_tq1_0(data))


def _tq2_0(data: Tensor) -> Tensor:
    return _ternary(unpack_tq2_0(data))


DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "IQ4_NL": _iq4_nl,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "MXFP4": mxfp4.decode,
}


@torch.library.custom_op(add_op_namespace_prefix("ggml_dequantize"), mutates_args=())
def ggml_dequantize(data: Tensor, type_name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes uint8 [out, row_bytes] of a type of GGML_TYPES → [out, in], computed in float32 and rounded to `dtype`."""
    kind = GGML_TYPES[type_name]
    blocks = data.reshape(-1, kind.type_size)
    out = torch.empty(len(blocks), kind.block_size, dtype=dtype, device=data.device)
    step = CHUNK_WEIGHTS // kind.block_size
    for start in range(0, len(blocks), step):
        out[start : start + step] = DECODERS[type_name](blocks[start : start + step])
    return out.view(data.shape[0], data.shape[1] // kind.type_size * kind.block_size)


@ggml_dequantize.register_fake
def _(data: Tensor, type_name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    kind = GGML_TYPES[type_name]
    return data.new_empty(data.shape[0], data.shape[1] // kind.type_size * kind.block_size, dtype=dtype)


on_gpu(ggml_dequantize, "ggml_dequantize")
