"""Decoding ggml's block types."""

import torch
from case import Case, Run, random_blocks
from hubquant_kernels.ggml_dequantize import ggml_dequantize
from hubquant_kernels.ggml_types import GGML_TYPES

OUT, IN = 4096, 14336


def cases() -> list[Case]:
    return [_case(name) for name in ("Q4_0", "Q8_0", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS")]


def _case(name: str) -> Case:
    kind = GGML_TYPES[name]

    def prepare() -> dict[str, Run]:
        data = random_blocks(OUT, IN // kind.block_size * kind.type_size)
        return {
            "triton": lambda: ggml_dequantize(data, name, torch.bfloat16),
            "definition": lambda: ggml_dequantize._init_fn(data, name, torch.bfloat16),
        }

    return Case("ggml_dequantize", f"{name}, {OUT} x {IN} to bfloat16", prepare, OUT * IN * (2 + kind.bits_per_weight / 8))
