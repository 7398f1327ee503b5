"""Kernels of hubquant. Every operator has a definition in plain torch; faster implementations register beside it by device.

The modules below are the public part of a version of the Hub kernel repository. They are imported when they are asked for.
"""

import importlib
from types import ModuleType

__all__ = [
    "awq_search",
    "descend",
    "divergence",
    "ggml_dequantize",
    "ggml_matmul",
    "ggml_quantize",
    "gptq_block",
    "grid",
    "hessian",
    "int4_matmul",
    "layers",
    "pack",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
