"""Linears that keep their weights packed. Buffers carry the names of the files, so a state dict loads and saves as it is."""

import torch
from torch import Tensor, nn

from .awq_gemv import ROWS, dequantize_awq_gemv, dequantize_awq_gemv_fast, padded_groups
from .int4_matmul import matmul_awq, matmul_dense, matmul_gptq

WORD = 32
ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}  # a one in every code of a word


class GptqLinear(nn.Module):
    """y = x Wᵀ + b with W in GPTQ's layout: `bits` 2, 3, 4 or 8, any g_idx; `zero_offset` 1 for version 1, 0 for version 2."""

    def __init__(self, in_features: int, out_features: int, bits: int, group_size: int, zero_offset: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.zero_offset = bits, zero_offset
        n_groups = -(-in_features // group_size)
        self.register_buffer("qweight", torch.zeros(in_features * bits // WORD, out_features, dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros(n_groups, out_features * bits // WORD, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(n_groups, out_features, dtype=torch.float16))
        self.register_buffer("g_idx", torch.arange(in_features, dtype=torch.int32) // group_size)
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float16) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        out = matmul_gptq(x, self.qweight, self.qzeros, self.scales, self.g_idx, self.bits, self.zero_offset)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class GptqCarryLinear(GptqLinear):
    """GPTQ version 1 of 2, 4 or 8 bits as GPTQModel writes it: one was taken from all zeros of a word by a subtraction of words.

    Under a zero of 0 it borrowed from the next zero, which only the addition of words gives back.
    """

    def forward(self, x: Tensor) -> Tensor:
        zeros = carried(self.qzeros, self.bits)
        out = matmul_gptq(x, self.qweight, zeros, self.scales, self.g_idx, self.bits, 0)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def carried(qzeros: Tensor, bits: int) -> Tensor:
    """Zeros of version 2 from those of GPTQModel's version 1, for `bits` of ONES."""
    return qzeros + ONES[bits]  # int32 wraps around


class AwqLinear(nn.Module):
    """y = x Wᵀ + b with W in AWQ's GEMM layout, 4 bits."""

    def __init__(self, in_features: int, out_features: int, group_size: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        n_groups = in_features // group_size
        self.register_buffer("qweight", torch.zeros(in_features, out_features // 8, dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros(n_groups, out_features // 8, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(n_groups, out_features, dtype=torch.float16))
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float16) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        out = matmul_awq(x, self.qweight, self.qzeros, self.scales)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class AwqGemvLinear(nn.Module):
    """y = x Wᵀ + b with W in AWQ's GEMV layout, 4 bits. Decoded at each call: the layout is older than GEMM and slow here."""

    decode = staticmethod(dequantize_awq_gemv)

    def __init__(self, in_features: int, out_features: int, group_size: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        for name, (shape, dtype) in self.buffers_of_files().items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float16) if bias else None)

    def buffers_of_files(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        groups = padded_groups(self.in_features, self.group_size)
        return {
            "qweight": ((self.out_features, self.in_features // 8), torch.int32),
            "qzeros": ((self.out_features, groups // 8), torch.int32),
            "scales": ((self.out_features, groups), torch.float16),
        }

    def forward(self, x: Tensor) -> Tensor:
        out = matmul_dense(x, self.decode(self.qweight, self.qzeros, self.scales, self.group_size))
        return out if self.bias is None else out + self.bias.to(out.dtype)


class AwqGemvFastLinear(AwqGemvLinear):
    """The same for GEMV fast."""

    decode = staticmethod(dequantize_awq_gemv_fast)

    def buffers_of_files(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        groups = padded_groups(self.in_features, self.group_size)
        return {
            "qweight": ((self.out_features // ROWS, self.in_features), torch.int16),
            "qzeros": ((groups, self.out_features), torch.float16),
            "scales": ((groups, self.out_features), torch.float16),
        }
