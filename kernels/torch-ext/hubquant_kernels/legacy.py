"""Encoders of the types with blocks of 32 weights and of the plain float types."""

import torch
from torch import Tensor

from .ggml_layout import half_bytes, pack_bit32, pack_nibbles


def encode_f32(blocks: Tensor, importance: Tensor | None, mode: str) -> Tensor:
    return blocks.contiguous().view(torch.uint8)


def encode_f16(blocks: Tensor, importance: Tensor | None, mode: str) -> Tensor:
    return blocks.to(torch.float16).view(torch.uint8)


def encode_bf16(blocks: Tensor, importance: Tensor | None, mode: str) -> Tensor:
    return blocks.to(torch.bfloat16).view(torch.uint8)


def _inverse(d: Tensor) -> Tensor:
    return torch.where(d == 0, torch.zeros_like(d), torch.ones_like(d) / d)


def round_away(x: Tensor) -> Tensor:
    """C's roundf: halves away from zero."""
    whole = x.trunc()
    return whole + (x - whole).mul_(2).trunc_()


def encode_q8_0(blocks: Tensor, importance: Tensor | None, mode: str) -> Tensor:
    peak = blocks.abs().amax(1, keepdim=True)
    d = peak / torch.full_like(peak, 127.0)
    codes = round_away(blocks * _inverse(d)).to(torch.int8)
    return torch.cat((half_bytes(d.to(torch.float16)), codes.view(torch.uint8)), dim=1)


def _peak(blocks: Tensor) -> Tensor:
    return blocks.gather(1, blocks.abs().argmax(1, keepdim=True))


def _symmetric(blocks: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    d = _peak(blocks) / -levels
    codes = (blocks * _inverse(d) + (levels + 0.5)).trunc_().clamp_(0, 2 * levels - 1)
    return d.to(torch.float16), codes.to(torch.uint8)


def _affine(blocks: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    low = blocks.amin(1, keepdim=True)
    span = blocks.amax(1, keepdim=True) - low
    d = span / torch.full_like(span, levels)
    codes = ((blocks - low) * _inverse(d) + 0.5).trunc_().clamp_(0, levels)
    return d.to(torch.float16), low.to(torch.float16), codes.to(torch.uint8)


def encode_q4_0(blocks: Tensor, importance: Tensor | None, mode: str) -> Tensor:
    d, codes = _symmetric(blocks, 8)
    return torch.cat((half_bytes(d), pack_nibbles(codes, 16)), dim=1)


def encode_q4_1(blocks: Tensor, importance: Tensor | None, mode: str) -> Tensor:
    d, m, codes = _affine(blocks, 15)
    return torch.cat((half_bytes(d), half_bytes(m), pack_nibbles(codes, 16)), dim=1)


def encode_q5_0(blocks: Tensor, importance: Tensor | None, mode: str) -> Tensor:
    d, codes = _symmetric(blocks, 16)
    return torch.cat((half_bytes(d), pack_bit32(codes >> 4), pack_nibbles(codes & 15, 16)), dim=1)


def encode_q5_1(blocks: Tensor, importance: Tensor | None, mode: str) -> Tensor:
    d, m, codes = _affine(blocks, 31)
    return torch.cat((half_bytes(d), half_bytes(m), pack_bit32(codes >> 4), pack_nibbles(codes & 15, 16)), dim=1)
