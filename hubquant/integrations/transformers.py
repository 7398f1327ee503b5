"""`import hubquant` lets `AutoModelForCausalLM.from_pretrained` load GPTQ, AWQ and GGUF repos with our kernels.

transformers 5 loads the first two through gptqmodel (and optimum), and has no hook for another loader under the same
name, so its tables of quantizers and of their configs are changed when this module is imported. Where gptqmodel is installed
(auto-round for its own method name) we step aside, unless HUBQUANT_BACKEND=1. For GGUF see integrations/gguf.py.
"""

import os
from importlib.util import find_spec
from typing import Any

from transformers.quantizers import auto

from hubquant.integrations import gguf
from hubquant.integrations.quantizer import AwqLoader, GptqLoader, auto_round_loader
from hubquant.integrations.settings import AutoRoundConfig, AwqConfig, GPTQConfig

OURS: dict[str, tuple[Any, Any]] = {
    "gptq": (GptqLoader, GPTQConfig),
    "awq": (AwqLoader, AwqConfig),
    "auto-round": (auto_round_loader, AutoRoundConfig),
}
OTHERS = {"gptq": "gptqmodel", "awq": "gptqmodel", "auto-round": "auto_round"}  # the packages that transformers' own loaders need

_stock: dict[str, tuple[Any, Any]] = {}


def install() -> None:
    """Put our loaders in place, except where the package that transformers asks for is installed and HUBQUANT_BACKEND is not 1."""
    gguf.install()
    for method, ours in OURS.items():
        if find_spec(OTHERS[method]) is not None and os.environ.get("HUBQUANT_BACKEND") != "1":
            continue
        _stock.setdefault(method, (auto.AUTO_QUANTIZER_MAPPING[method], auto.AUTO_QUANTIZATION_CONFIG_MAPPING[method]))
        _set(method, ours)


def restore() -> None:
    """Undo `install`: transformers' own loaders again."""
    gguf.restore()
    for method, stock in _stock.items():
        _set(method, stock)
    _stock.clear()


def _set(method: str, pair: tuple[Any, Any]) -> None:
    auto.AUTO_QUANTIZER_MAPPING[method], auto.AUTO_QUANTIZATION_CONFIG_MAPPING[method] = pair


install()
