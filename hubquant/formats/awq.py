"""AWQ on disk (GEMM layout): X.qweight [in, out/8] int32 and X.qzeros [n_groups, out/8] int32, eight columns to a word in the
order 0 2 4 6 1 3 5 7, X.scales [n_groups, out] float16. Always 4 bits and asymmetric."""

from collections.abc import Mapping
from typing import Any

from hubquant_kernels.int4_matmul import dequantize_awq
from hubquant_kernels.pack import pack_words, to_awq_order
from torch import Tensor

from hubquant.quantize.grid import Grid, QuantizedWeight

SUFFIXES = ("qweight", "qzeros", "scales")
BITS = 4


def pack(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The three tensors of one linear by suffix."""
    return {
        "qweight": pack_words(to_awq_order(weight.codes.T.contiguous()), BITS),
        "qzeros": pack_words(to_awq_order(weight.zeros.T.contiguous()), BITS),
        "scales": weight.scales.T.contiguous(),
    }


def dequantize(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Dense weight [out, in] float32 of one linear from its tensors by suffix; all the layout needs is in their shapes."""
    del config
    return dequantize_awq(*(tensors[s] for s in SUFFIXES))


def quantization_config(grid: Grid, kept: list[str]) -> dict[str, Any]:
    """The block of config.json that transformers, vLLM and SGLang read. `kept`: linears left in 16 bit."""
    return {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": grid.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head", *kept],
    }
