"""GPTQ on disk: X.qweight [in·bits/32, out] int32, X.qzeros [n_groups, out·bits/32] int32, X.scales [n_groups, out] float16,
X.g_idx [in] int32. Version 1 (`checkpoint_format: gptq`) stores zero − 1; version 2 (`gptq_v2`) stores the zero itself."""

from collections.abc import Mapping
from typing import Any

import torch
from hubquant_kernels.pack import pack_words, unpack_words
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.quantize.grid import Grid, QuantizedWeight

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 4, 8)


def pack(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The four tensors of one linear, by suffix, version 1."""
    bits = weight.grid.bits
    stored_zeros = (weight.zeros.to(torch.int16) - 1) % 2**bits
    return {
        "qweight": pack_words(weight.codes, bits).T.contiguous(),
        "qzeros": pack_words(stored_zeros.to(torch.uint8).T.contiguous(), bits),
        "scales": weight.scales.T.contiguous(),
        "g_idx": weight.group_index,
    }


def dequantize(tensors: Mapping[str, Tensor], bits: int, version: int = 1) -> Tensor:
    """Dense weight [out, in] float32 from the tensors of one linear, for any g_idx."""
    codes = unpack_words(tensors["qweight"].T.contiguous(), bits)
    zeros = unpack_words(tensors["qzeros"], bits).T.float()
    if version == 1:
        zeros = (zeros + 1) % 2**bits
    scales = tensors["scales"].T.float()
    g_idx = tensors["g_idx"].long()
    return (codes.float() - zeros[:, g_idx]) * scales[:, g_idx]


def quantization_config(grid: Grid, kept: list[str], damp_ratio: float, producer: str) -> dict[str, Any]:
    """The block of config.json that transformers, vLLM and SGLang read. `kept`: linears left in 16 bit."""
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": grid.bits,
        "group_size": grid.group_size,
        "sym": grid.symmetric,
        "desc_act": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "lm_head": False,
        "damp_percent": damp_ratio,
        "true_sequential": False,
        "meta": {"quantizer": [producer]},
    }
    if kept:
        config["dynamic"] = {f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in kept}
    return config


def version(config: Mapping[str, Any]) -> int:
    """1 or 2, by `checkpoint_format`. Raises BadModel for another one."""
    name = config.get("checkpoint_format") or config.get("format") or "gptq"
    if name not in ("gptq", "gptq_v2"):
        raise BadModel(f"quantization_config.checkpoint_format is {name!r}; known: gptq, gptq_v2")
    return 2 if name == "gptq_v2" else 1
