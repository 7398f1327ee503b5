"""Encoding a weight into ggml's block types with importance."""

import torch
from case import Case, Run
from hubquant_kernels.ggml_quantize import ggml_quantize
from hubquant_kernels.ggml_types import GGML_TYPES

OUT, IN = 4096, 4096


def cases() -> list[Case]:
    return [_case(name) for name in ("Q4_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")]


def _case(name: str) -> Case:
    def prepare() -> dict[str, Run]:
        weight, importance = torch.randn(OUT, IN, device="cuda", dtype=torch.bfloat16), torch.rand(IN, device="cuda")
        return {
            "triton": lambda: ggml_quantize(weight, importance, name, "best"),
            "definition": lambda: ggml_quantize._init_fn(weight, importance, name, "best"),
        }

    size = OUT * IN * (2 + GGML_TYPES[name].bits_per_weight / 8)
    return Case("ggml_quantize", f"{name}, {OUT} x {IN}, bfloat16", prepare, size)
