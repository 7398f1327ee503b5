"""`import hubquant` lets `AutoModelForCausalLM.from_pretrained` load GPTQ and AWQ repos with our kernels.

transformers 5 loads these formats through gptqmodel (and optimum), and has no hook for another loader under the same
name, so its table of quantizers is changed when this module is imported. Where gptqmodel is installed we step aside, unless
HUBQUANT_BACKEND=1.
"""

import json
import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
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
    format: ModuleType

    @abstractmethod
    def packed_linear(self, in_features: int, out_features: int, bias: bool) -> nn.Module:
        """An empty layer of the format, with the buffers that the files fill."""

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Nothing but torch is needed."""

    def _process_model_before_weight_loading(self, model: nn.Module, checkpoint_files: Iterable[str] = (), **kwargs: Any) -> None:
        files = list(checkpoint_files or ())
        stored = _stored_shapes(files)
        packed = sorted({n.removesuffix(s) for s in (".qweight", ".qzeros") for n in stored if n.endswith(s)})
        if not packed:
            raise BadModel("quantization_config says the model is packed, but its files hold no tensor named *.qweight")
        replaced = set()
        for name in packed:
            module_name, linear = _find_linear(model, name)
            with torch.device("meta"):
                replacement = self.packed_linear(linear.in_features, linear.out_features, linear.bias is not None)
            for suffix in self.format.SUFFIXES:
                _check_shape(f"{name}.{suffix}", stored, tuple(getattr(replacement, suffix).shape))
            model.set_submodule(module_name, replacement)
            replaced.add(module_name)
        _check_others(model, replaced, stored)
        self._remember_settings(Path(files[0]).with_name("config.json"))

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        for name, module in model.named_modules():
            if isinstance(module, GptqLinear | AwqLinear) and not module.scales.is_meta:  # meta: accelerate left it on disk
                self.format.check(name, {s: getattr(module, s) for s in self.format.SUFFIXES}, self._config())

    def _config(self) -> dict[str, Any]:
        """The block of config.json under the names of both formats; transformers keeps the layout's name in `format`."""
        config = self.quantization_config
        layout = {"checkpoint_format": config.format, "version": config.format}
        return {"bits": config.bits, "group_size": config.group_size, **layout}

    def _remember_settings(self, file: Path) -> None:
        """Settings that transformers' class does not know (`dynamic`, `pack_dtype`), for save_pretrained to write them again."""
        block = json.loads(file.read_text()).get("quantization_config") if file.exists() else None
        known = self.quantization_config.to_dict()
        for name, value in (block or {}).items():
            if name not in known:
                setattr(self.quantization_config, name, value)

    def _group_size(self, in_features: int) -> int:
        size: int = self.quantization_config.group_size
        return in_features if size == -1 else size

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


class GptqLoader(_Loader):
    """GPTQ version 1 and 2; 2, 3, 4 and 8 bits; symmetric or not; any group size and g_idx."""

    format = gptq

    def packed_linear(self, in_features: int, out_features: int, bias: bool) -> nn.Module:
        bits, offset = gptq.width(self._config()), gptq.zero_offset(self._config())
        return GptqLinear(in_features, out_features, bits, self._group_size(in_features), offset, bias)


class AwqLoader(_Loader):
    """AWQ's GEMM layout, 4 bits."""

    format = awq

    def packed_linear(self, in_features: int, out_features: int, bias: bool) -> nn.Module:
        awq.check_layout(self._config())
        return AwqLinear(in_features, out_features, self._group_size(in_features), bias)


def _find_linear(model: nn.Module, name: str) -> tuple[str, nn.Linear]:
    """The linear that the files call `name`, and what the model calls it."""
    for candidate in _aliases(model, name):
        try:
            module = model.get_submodule(candidate)
        except AttributeError:
            continue
        if not isinstance(module, nn.Linear):
            raise BadModel(f"the files hold {name}.qweight, but module {candidate} is a {type(module).__name__}, not a Linear")
        return candidate, module
    raise BadModel(f"the files hold {name}.qweight, but the model has no module {name}")


def _check_others(model: nn.Module, packed: Iterable[str], stored: Mapping[str, tuple[int, ...]]) -> None:
    """A linear that is packed in other layers must be in the files, packed or not: transformers would make up its weight."""
    kinds = {_kind(name) for name in packed}
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Linear)
            and _kind(name) in kinds
            and not any(f"{a}.weight" in stored for a in _aliases(model, name))
        ):
            raise BadModel(f"the files hold neither {name}.qweight nor {name}.weight; are they complete?")


def _aliases(model: nn.Module, name: str) -> tuple[str, str, str]:
    """A module may have its model's prefix in the files and not in the model, where only the backbone is loaded, or the reverse."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return name, name.removeprefix(prefix), prefix + name


def _kind(name: str) -> str:
    """The name without its numbers: the same for every layer."""
    return re.sub(r"\d+", "*", name)


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


install()
