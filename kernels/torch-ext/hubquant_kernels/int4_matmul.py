"""Packed weights times activations, for GPTQ's and AWQ's layouts; and their decoding, which is the definition of both.

Gradients reach the activations, so that adapters can be trained beside packed weights, which have none.
"""

from typing import Any

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .dispatch import on_gpu
from .pack import WORD, from_awq_order, unpack_words

AWQ_BITS = 4


@torch.library.custom_op(add_op_namespace_prefix("dequantize_gptq"), mutates_args=())
def dequantize_gptq(qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, bits: int, zero_offset: int) -> Tensor:
    """[out, in] float32, (code − zero) · scale, for any g_idx.

    qweight [in·bits/32, out] int32, qzeros [n_groups, out·bits/32] int32, scales [n_groups, out], g_idx [in] int32, or None
    where the groups are of one size and in order.
    `zero_offset` is what the file's version leaves out of a stored zero: 1 for GPTQ version 1, 0 for version 2.
    """
    codes = unpack_words(qweight.T.contiguous(), bits)
    zeros = (unpack_words(qzeros, bits).T.float() + zero_offset) % 2**bits
    n_in, n_groups = codes.shape[1], scales.shape[0]
    group = torch.arange(n_in, device=codes.device) // (n_in // n_groups) if g_idx is None else g_idx.long()
    return (codes.float() - zeros[:, group]) * scales.T.float()[:, group]


@dequantize_gptq.register_fake
def _(qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, bits: int, zero_offset: int) -> Tensor:
    return qweight.new_empty((qweight.shape[1], qweight.shape[0] * WORD // bits), dtype=torch.float32)


@torch.library.custom_op(add_op_namespace_prefix("dequantize_awq"), mutates_args=())
def dequantize_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    """[out, in] float32 from AWQ's GEMM layout.

    qweight [in, out/8] int32, qzeros [n_groups, out/8] int32, scales [n_groups, out].
    """
    codes = from_awq_order(unpack_words(qweight, AWQ_BITS)).float()
    zeros = from_awq_order(unpack_words(qzeros, AWQ_BITS)).float()
    repeat = codes.shape[0] // scales.shape[0]
    dense = (codes - zeros.repeat_interleave(repeat, dim=0)) * scales.float().repeat_interleave(repeat, dim=0)
    return dense.T.contiguous()


@dequantize_awq.register_fake
def _(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    return qweight.new_empty((qweight.shape[1] * 8, qweight.shape[0]), dtype=torch.float32)


@torch.library.custom_op(add_op_namespace_prefix("matmul_gptq"), mutates_args=())
def matmul_gptq(
    x: Tensor, qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, bits: int, zero_offset: int
) -> Tensor:
    """x [..., in] @ Wᵀ → [..., out] in x's dtype; the weight as for `dequantize_gptq`."""
    return matmul_dense(x, dequantize_gptq(qweight, qzeros, scales, g_idx, bits, zero_offset))


@matmul_gptq.register_fake
def _(x: Tensor, qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, bits: int, zero_offset: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], qweight.shape[1]))


@torch.library.custom_op(add_op_namespace_prefix("matmul_awq"), mutates_args=())
def matmul_awq(x: Tensor, qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    """x [..., in] @ Wᵀ → [..., out] in x's dtype; the weight as for `dequantize_awq`."""
    return matmul_dense(x, dequantize_awq(qweight, qzeros, scales))


@matmul_awq.register_fake
def _(x: Tensor, qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], qweight.shape[1] * 8))


def matmul_dense(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in] @ weightᵀ in x's dtype; on a CPU in float32: half-precision products are about 50 times slower there."""
    dtype = torch.float32 if x.device.type == "cpu" else x.dtype
    return (x.to(dtype) @ weight.to(dtype).T).to(x.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*(t for t in inputs[1:] if isinstance(t, Tensor)))
    ctx.settings = tuple(s for s in inputs[1:] if not isinstance(s, Tensor))


def _gptq_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    weight = dequantize_gptq(*ctx.saved_tensors, *ctx.settings)
    return matmul_dense(gradient, weight.T), None, None, None, None, None, None


def _awq_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return matmul_dense(gradient, dequantize_awq(*ctx.saved_tensors).T), None, None, None


matmul_gptq.register_autograd(_gptq_backward, setup_context=_keep)
matmul_awq.register_autograd(_awq_backward, setup_context=_keep)

for _operator, _module in (
    (dequantize_gptq, "int4_dequantize"),
    (dequantize_awq, "int4_dequantize"),
    (matmul_gptq, "int4_matmul"),
    (matmul_awq, "int4_matmul"),
):
    on_gpu(_operator, _module)
