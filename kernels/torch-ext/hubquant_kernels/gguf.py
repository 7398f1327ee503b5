"""What transformers' GGUF quantizer asks of a kernel, under its names, so that GGUF weights stay packed on GPUs.

`ggml_type` is the type's number in a GGUF file. Source: transformers 5.23, integrations/gguf/kernels.py (GgufKernel).
"""

import torch
from torch import Tensor

from .ggml_dequantize import ggml_dequantize
from .ggml_matmul import ggml_matmul, ggml_matmul_experts
from .ggml_types import GGML_TYPES

_NAMES = {kind.value: name for name, kind in GGML_TYPES.items() if kind.block_size > 1}

# the block types that can be multiplied with as they are
GEMV_TYPES = frozenset(_NAMES)


def _name(ggml_type: int) -> str:
    try:
        return _NAMES[ggml_type]
    except KeyError:
        known = ", ".join(f"{value} ({name})" for value, name in _NAMES.items())
        raise ValueError(f"no kernel for the ggml type {ggml_type}; known: {known}") from None


def mul_mat_vec(weight: Tensor, x: Tensor, ggml_type: int, out_features: int) -> Tensor:
    """weight uint8 [out_features, row_bytes], x [M, in] → [M, out_features] in x's dtype."""
    product: Tensor = ggml_matmul(x, weight.view(out_features, -1), _name(ggml_type))
    return product


def dequantize(weight: Tensor, ggml_type: int, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    """weight uint8 [rows, row_bytes] → [rows, cols]."""
    dense: Tensor = ggml_dequantize(weight.view(rows, -1), _name(ggml_type), dtype)
    return dense.view(rows, cols)


def get_rows(weight: Tensor, indices: Tensor, ggml_type: int, cols: int, dtype: torch.dtype) -> Tensor:
    """The rows `indices` [n] of weight uint8 [rows, row_bytes] → [n, cols]."""
    return dequantize(weight.index_select(0, indices), ggml_type, len(indices), cols, dtype)


def mul_mat_id(blocks: Tensor, x: Tensor, ids: Tensor, ggml_type: int, out_features: int) -> Tensor:
    """blocks uint8 [n_experts, out_features, row_bytes], x [tokens, in], ids [tokens, k] → [tokens, k, out_features]."""
    product: Tensor = ggml_matmul_experts(x, blocks.view(len(blocks), out_features, -1), ids, _name(ggml_type))
    return product
