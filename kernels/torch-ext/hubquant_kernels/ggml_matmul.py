"""Activations times weights in ggml's blocks; the definition decodes the weight."""

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .dispatch import on_gpu
from .ggml_dequantize import ggml_dequantize
from .ggml_types import GGML_TYPES


def check_columns(x: Tensor, data: Tensor, type_name: str) -> None:
    """Raises ValueError where rows of these bytes do not have as many weights as x has columns."""
    kind = GGML_TYPES[type_name]
    blocks, rest = divmod(data.shape[-1], kind.type_size)
    if rest:
        raise ValueError(f"rows of {data.shape[-1]} bytes are no whole number of {type_name} blocks of {kind.type_size}")
    if blocks * kind.block_size != x.shape[-1]:
        raise ValueError(f"x has {x.shape[-1]} columns and the {type_name} weight {blocks * kind.block_size}")


@torch.library.custom_op(add_op_namespace_prefix("ggml_matmul"), mutates_args=())
def ggml_matmul(x: Tensor, data: Tensor, type_name: str) -> Tensor:
    """x [..., in] @ Wᵀ → [..., out] in x's dtype, for W as uint8 [out, row_bytes] of a type of GGML_TYPES."""
    check_columns(x, data, type_name)
    weight = ggml_dequantize(data, type_name)
    return (x.float() @ weight.T).to(x.dtype)


@ggml_matmul.register_fake
def _(x: Tensor, data: Tensor, type_name: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], data.shape[0]))


@torch.library.custom_op(add_op_namespace_prefix("ggml_matmul_experts"), mutates_args=())
def ggml_matmul_experts(x: Tensor, data: Tensor, experts: Tensor, type_name: str) -> Tensor:
    """Each x of [tokens, in] times the weights of its k experts → [tokens, k, out] in x's dtype.

    `data` uint8 [n_experts, out, row_bytes]; `experts` [tokens, k], integers.
    """
    check_columns(x, data, type_name)
    out = x.new_empty(*experts.shape, data.shape[1])
    for expert in experts.unique().tolist():
        token, slot = (experts == expert).nonzero(as_tuple=True)
        out[token, slot] = ggml_matmul(x[token], data[expert], type_name)
    return out


@ggml_matmul_experts.register_fake
def _(x: Tensor, data: Tensor, experts: Tensor, type_name: str) -> Tensor:
    return x.new_empty((*experts.shape, data.shape[1]))


on_gpu(ggml_matmul, "ggml_matmul")
on_gpu(ggml_matmul_experts, "ggml_matmul")
