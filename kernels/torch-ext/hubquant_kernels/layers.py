"""Linears that keep their weights packed. Buffers carry the names of the files, so a state dict loads and saves as it is."""

import torch
from torch import Tensor, nn

from .int4_matmul import matmul_awq, matmul_gptq

WORD = 32


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
