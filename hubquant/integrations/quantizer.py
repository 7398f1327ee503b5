"""transformers' loaders of GPTQ and AWQ checkpoints, ours: every linear that is packed in the files stays packed in the model."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
from hubquant_kernels.layers import AwqGemvFastLinear, AwqGemvLinear, AwqLinear, GptqCarryLinear, GptqLinear, Int4Linear
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer

from hubquant.errors import BadModel
from hubquant.formats import awq, gptq
from hubquant.integrations.experts import renamings, unfuse
from hubquant.integrations.settings import AutoRoundConfig, AwqConfig, GPTQConfig
from hubquant.integrations.stored import Entry, aliases, entries, fit, kind, packed_names, renamed_names
from hubquant.model.naming import StoredNames

AWQ_LAYERS = {awq.LAYOUT: AwqLinear, "gemv": AwqGemvLinear, "gemv_fast": AwqGemvFastLinear}
PACKED_LINEARS = (GptqLinear, AwqLinear, AwqGemvLinear)


class _Loader(HfQuantizer):  # type: ignore[misc]
    """Swaps every linear whose weight is packed in the files for one of ours, before the weights are loaded."""

    requires_calibration = True
    format: ModuleType
    settings: type[GPTQConfig] | type[AwqConfig]
    quantization_config: Any

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._linears: dict[str, str] = {}  # what the files call each module that was replaced
        self._renamings: list[Any] = []
        self._stored: dict[str, Entry] = {}

    @abstractmethod
    def packed_linear(self, name: str, in_features: int, out_features: int, bias: bool) -> nn.Module:
        """An empty layer of the format for the linear that the files call `name`, with the buffers that they fill."""

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Nothing but torch is needed; a config that was made before our loaders were in place is checked here."""
        if not isinstance(self.quantization_config, self.settings | AutoRoundConfig):
            self.quantization_config = self.settings(**self.quantization_config.to_dict())

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Iterable[str] = (), **kwargs: Any
    ) -> None:
        self._stored = stored = entries(checkpoint_files or ())
        packed = packed_names(stored)
        if not packed:
            raise BadModel("quantization_config says the model is packed, but its files hold no tensor named *.qweight")
        names = StoredNames(model)
        renamed = renamed_names(model, packed)
        self._renamings = renamings(unfuse(model, packed, renamed, names), names)
        dense = {}
        for module_name, module in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]:
            candidates = aliases(model, names.stored(f"{module_name}.weight").removesuffix(".weight"))
            name = next((c for c in candidates if c in packed), renamed.get(module_name))
            if name is None:
                dense[module_name] = candidates
                continue
            model.set_submodule(module_name, self._replacement(name, module, stored))
            _untie(model, module_name)
            self._linears[module_name] = name
        _check_all_found(model, packed, set(self._linears.values()))
        _check_dense(dense, {kind(n) for n in self._linears.values()}, stored)

    def _replacement(self, name: str, linear: nn.Linear | Conv1D, stored: Mapping[str, Entry]) -> nn.Module:
        if isinstance(linear, nn.Linear):
            in_features, out_features = linear.in_features, linear.out_features
        else:
            in_features, out_features = linear.weight.shape
        with torch.device("meta"):
            layer = self.packed_linear(name, in_features, out_features, linear.bias is not None)
        fit(layer, name, stored)
        # models initialize what the files lack, buffers too, and some reach for the weight of a linear in doing so
        layer.weight = torch.empty(0)
        layer.weight._is_hf_initialized = True  # type: ignore[attr-defined]
        return layer

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        return weight_conversions + self._renamings

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        for module_name, name in self._linears.items():
            layer = model.get_submodule(module_name)
            vars(layer).pop("weight", None)
            tensors = {s: getattr(layer, s) for s in self.format.SUFFIXES}
            places = {s: t.device for s, t in tensors.items()}
            if len(set(places.values())) > 1:
                where = ", ".join(f"{s} on {d}" for s, d in places.items())
                raise BadModel(f"the tensors of {name} must be on one device; device_map puts {where}")
            if not layer.scales.is_meta:  # meta: accelerate left it on disk
                self.format.check(name, tensors, self._settings(name))
        if len({t.device.type for t in (*model.parameters(), *model.buffers())}) == 1:  # else accelerate moves buffers about
            for layer in (m for m in model.modules() if isinstance(m, Int4Linear)):
                layer.prepare()

    def _settings(self, name: str) -> dict[str, Any]:
        settings: dict[str, Any] = self.quantization_config.of_linear(name)
        return settings

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters beside the packed weights are (integrations/peft.py)."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True


class GptqLoader(_Loader):
    """GPTQ version 1 and 2; 2, 3, 4 and 8 bits; symmetric or not; any group size and g_idx."""

    format, settings = gptq, GPTQConfig

    def packed_linear(self, name: str, in_features: int, out_features: int, bias: bool) -> nn.Module:
        settings = self._settings(name)
        kind_of_layer = GptqCarryLinear if gptq.carries(settings) else GptqLinear
        size = _group_size(settings, in_features)
        layer = kind_of_layer(in_features, out_features, gptq.width(settings), size, gptq.zero_offset(settings), bias)
        if not settings.get("desc_act") and not any(n.endswith(".g_idx") for n in self._stored):  # auto-round leaves them out
            layer.register_buffer("g_idx", layer.get_buffer("g_idx"), persistent=False)
        return layer

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        for module_name, name in self._linears.items():
            layer = model.get_submodule(module_name)
            if "g_idx" in layer._non_persistent_buffers_set:
                empty = layer.get_buffer("g_idx")
                size = _group_size(self._settings(name), empty.numel())
                layer.g_idx = torch.arange(empty.numel(), dtype=torch.int32, device=empty.device) // size
        super()._process_model_after_weight_loading(model, **kwargs)


class AwqLoader(_Loader):
    """AWQ's layouts, 4 bits."""

    format, settings = awq, AwqConfig

    def packed_linear(self, name: str, in_features: int, out_features: int, bias: bool) -> nn.Module:
        settings = self._settings(name)
        try:
            return AWQ_LAYERS[awq.layout(settings)](in_features, out_features, _group_size(settings, in_features), bias)
        except ValueError as error:
            raise BadModel(f"{name}: {error}") from None


def auto_round_loader(quantization_config: Any, **kwargs: Any) -> _Loader:
    """auto-round's own method name stands before either layout."""
    if not isinstance(quantization_config, AutoRoundConfig):
        quantization_config = AutoRoundConfig(**quantization_config.to_dict())
    loader = AwqLoader if quantization_config.packs_as_awq else GptqLoader
    return loader(quantization_config, **kwargs)


def _group_size(settings: Mapping[str, Any], in_features: int) -> int:
    size: int = settings["group_size"]
    return in_features if size == -1 else size


def _untie(model: PreTrainedModel, module_name: str) -> None:
    """A packed head shares nothing with the embedding, whatever the config says."""
    if model.all_tied_weights_keys.pop(f"{module_name}.weight", None) is not None:
        model.config.get_text_config(decoder=True).tie_word_embeddings = False


def _check_all_found(model: PreTrainedModel, packed: set[str], replaced: set[str]) -> None:
    """What is packed and has no linear in the model is an error, except a head where only the backbone is loaded."""
    prefix = f"{model.base_model_prefix}."
    only_backbone = not hasattr(model, model.base_model_prefix) and any(n.startswith(prefix) for n in packed)
    for name in sorted(packed - replaced):
        for candidate in aliases(model, name):
            try:
                module = model.get_submodule(candidate)
            except AttributeError:
                continue
            raise BadModel(f"the files hold {name}.qweight, but module {candidate} is a {type(module).__name__}, not a Linear")
        if name.startswith(prefix) or not only_backbone:
            raise BadModel(f"the files hold {name}.qweight, but the model has no module {name}")


def _check_dense(dense: Mapping[str, Iterable[str]], packed_kinds: set[str], stored: Mapping[str, Entry]) -> None:
    """A linear that is packed in other layers must be in the files, packed or not: transformers would make up its weight."""
    for candidates in dense.values():
        name, *others = candidates
        if not packed_kinds.isdisjoint(map(kind, candidates)) and not any(f"{c}.weight" in stored for c in (name, *others)):
            raise BadModel(f"the files hold neither {name}.qweight nor {name}.weight; are they complete?")
