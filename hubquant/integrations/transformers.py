"""`import hubquant` lets `AutoModelForCausalLM.from_pretrained` load GPTQ and AWQ repos with our kernels.

transformers 5 loads these formats through gptqmodel (and optimum), and has no hook for another loader under the same
name, so its table of quantizers is changed. Where gptqmodel is installed we step aside, unless HUBQUANT_BACKEND=1.
"""

import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from hubquant_kernels.layers import AwqLinear, GptqLinear
from safetensors import safe_open
from torch import nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer

from hubquant.errors import BadModel
from hubquant.formats import awq, gptq

_stock: dict[str, type[HfQuantizer]] = {}


def install() -> None:
    """Put our loaders in place, unless gptqmodel is installed and HUBQUANT_BACKEND is not 1."""
    if find_spec("gptqmodel") is not None and os.environ.get("HUBQUANT_BACKEND") != "1":
        return
    for method, quantizer in (("gptq", GptqLoader), ("awq", AwqLoader)):
        _stock.setdefault(method, auto.AUTO_QUANTIZER_MAPPING[method])
        auto.AUTO_QUANTIZER_MAPPING[method] = quantizer


def restore() -> None:
    """Undo `install`: transformers' own loaders again."""
    auto.AUTO_QUANTIZER_MAPPING.update(_stock)
    _stock.clear()


class _Loader(HfQuantizer):  # type: ignore[misc]
    """Swaps every linear whose weight is packed in the files for one of ours, before the weights are loaded."""

    requires_calibration = True
    suffixes: tuple[str, ...]

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Nothing but torch is needed."""

    def _process_model_before_weight_loading(self, model: nn.Module, checkpoint_files: Iterable[str] = (), **kwargs: Any) -> None:
        stored = _stored_shapes(checkpoint_files or ())
        packed = sorted(n.removesuffix(".qweight") for n in stored if n.endswith(".qweight"))
        if not packed:
            raise BadModel("quantization_config says the model is packed, but its files hold no tensor named *.qweight")
        for name in packed:
            linear = self._linear(model, name)
            with torch.device("meta"):
                replacement = self.packed_linear(linear.in_features, linear.out_features, linear.bias is not None)
            for suffix in self.suffixes:
                _check_shape(f"{name}.{suffix}", stored, tuple(getattr(replacement, suffix).shape))
            model.set_submodule(name, replacement)

    def packed_linear(self, in_features: int, out_features: int, bias: bool) -> nn.Module:
        raise NotImplementedError

    @staticmethod
    def _linear(model: nn.Module, name: str) -> nn.Linear:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise BadModel(f"the files hold {name}.qweight, but the model has no module {name}") from None
        if not isinstance(module, nn.Linear):
            raise BadModel(f"the files hold {name}.qweight, but module {name} is a {type(module).__name__}, not a Linear")
        return module

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


class GptqLoader(_Loader):
    """GPTQ version 1 and 2; 2, 4 and 8 bits; symmetric or not; any group size and g_idx."""

    suffixes = gptq.SUFFIXES

    def packed_linear(self, in_features: int, out_features: int, bias: bool) -> nn.Module:
        config = self.quantization_config
        if config.bits not in gptq.BITS:
            raise BadModel(f"quantization_config.bits is {config.bits}; hubquant loads {', '.join(map(str, gptq.BITS))} bits")
        offset = gptq.zero_offset({"checkpoint_format": config.format})
        group_size = in_features if config.group_size == -1 else config.group_size
        return GptqLinear(in_features, out_features, config.bits, group_size, offset, bias)


class AwqLoader(_Loader):
    """AWQ's GEMM layout, 4 bits."""

    suffixes = awq.SUFFIXES

    def packed_linear(self, in_features: int, out_features: int, bias: bool) -> nn.Module:
        config = self.quantization_config
        if config.bits != awq.BITS or str(config.format).lower() != "gemm":
            raise BadModel(
                f"AWQ with {config.bits} bits in layout {config.format!r}; hubquant loads {awq.BITS} bits in layout 'gemm'"
            )
        group_size = in_features if config.group_size == -1 else config.group_size
        return AwqLinear(in_features, out_features, group_size, bias)


def _stored_shapes(files: Iterable[str]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dict)
                shapes[name] = tuple(shard.get_slice(name).get_shape())
    return shapes


def _check_shape(name: str, stored: Mapping[str, tuple[int, ...]], wanted: tuple[int, ...]) -> None:
    if name not in stored:
        raise BadModel(f"tensor {name} is missing from the files")
    if stored[name] != wanted:
        raise BadModel(f"tensor {name} has shape {list(stored[name])}; its config asks for {list(wanted)}")
