"""`import hubquant` lets `AutoModelForCausalLM.from_pretrained` load GPTQ, AWQ and GGUF repos with our kernels.

transformers 5 loads the first two through gptqmodel (and optimum), and has no hook for another loader under the same
name, so its tables of quantizers and of their configs are changed when this module is imported. Where gptqmodel is installed
we step aside, unless HUBQUANT_BACKEND=1. For GGUF see integrations/gguf.py.
"""

import os
from importlib.util import find_spec
from typing import Any

from transformers.quantizers import auto

from hubquant.integrations import gguf
from hubquant.integrations.quantizer import AwqLoader, GptqLoader

LOADERS = {"gptq": GptqLoader, "awq": AwqLoader}

_stock: dict[str, tuple[Any, Any]] = {}


def install() -> None:
    """Put our loaders in place, unless gptqmodel is installed and HUBQUANT_BACKEND is not 1."""
    gguf.install()
    if find_spec("gptqmodel") is not None and os.environ.get("HUBQUANT_BACKEND") != "1":
        return
    for method, loader in LOADERS.items():
        _stock.setdefault(method, (auto.AUTO_QUANTIZER_MAPPING[method], auto.AUTO_QUANTIZATION_CONFIG_MAPPING[method]))
        auto.AUTO_QUANTIZER_MAPPING[method], auto.AUTO_QUANTIZATION_CONFIG_MAPPING[method] = loader, loader.settings


def restore() -> None:
    """Undo `install`: transformers' own loaders again."""
    gguf.restore()
    for method, (quantizer, config) in _stock.items():
        auto.AUTO_QUANTIZER_MAPPING[method], auto.AUTO_QUANTIZATION_CONFIG_MAPPING[method] = quantizer, config
    _stock.clear()


install()
