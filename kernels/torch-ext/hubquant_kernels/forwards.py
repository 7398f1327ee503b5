"""Forwards alone, for the `kernels` library's kernelize: they replace that of a linear that has the files' buffers already."""

from typing import ClassVar

from torch import Tensor, nn

from .int4_matmul import matmul_awq, matmul_gptq


class GptqForward(nn.Module):
    """In the place of the forward of a GPTQ linear with qweight, qzeros, scales, g_idx, bias, bits and zero_offset."""

    can_torch_compile: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        out = matmul_gptq(x, self.qweight, self.qzeros, self.scales, self.g_idx, self.bits, self.zero_offset)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class AwqForward(nn.Module):
    """In the place of the forward of an AWQ linear (GEMM layout) with qweight, qzeros, scales and bias."""

    can_torch_compile: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        out = matmul_awq(x, self.qweight, self.qzeros, self.scales)
        return out if self.bias is None else out + self.bias.to(out.dtype)
