"""What the files of a checkpoint hold, by their headers alone: nothing is read until the model is known to fit them."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings

from hubquant.errors import BadModel

DTYPES = {
    "I32": torch.int32, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
}  # fmt: skip
FREE = ("scales", "bias")  # the files say in which float type
PACKED = (".qweight", ".qzeros")


class Entry(NamedTuple):
    shape: tuple[int, ...]
    dtype: str


def entries(files: Iterable[str]) -> dict[str, Entry]:
    """Every tensor of the files. Raises BadModel for files other than safetensors."""
    found: dict[str, Entry] = {}
    for file in files:
        if Path(file).suffix != ".safetensors":
            raise BadModel(f"{Path(file).name} is no safetensors file: hubquant loads packed weights from no other")
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dict)
                part = shard.get_slice(name)
                found[name] = Entry(tuple(part.get_shape()), part.get_dtype())
    return found


def packed_names(stored: Iterable[str]) -> set[str]:
    """The linears that the files hold packed."""
    return {name.removesuffix(suffix) for name in stored for suffix in PACKED if name.endswith(suffix)}


def aliases(model: nn.Module, name: str) -> tuple[str, str, str]:
    """A module may have its model's prefix in the files and not in the model, where only the backbone is loaded, or the reverse."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return name, prefix + name, name.removeprefix(prefix)


def renamed_names(model: PreTrainedModel, packed: Iterable[str]) -> dict[str, str]:
    """By the module that transformers takes each packed linear to: several published names may lead to one module."""
    conversions = [c for c in get_model_conversion_mapping(model) if isinstance(c, WeightRenaming)]
    return {apply_renamings(f"{name}.qweight", conversions).removesuffix(".qweight"): name for name in packed}


def fit(layer: nn.Module, name: str, stored: Mapping[str, Entry]) -> None:
    """Compare the buffers of `layer`, on meta, with what the files hold for linear `name`; take their float types over.

    Raises BadModel for a tensor that is missing, or of another shape or type.
    """
    for suffix in [s for s, _ in layer.named_buffers() if s not in layer._non_persistent_buffers_set]:
        buffer = layer.get_buffer(suffix)
        tensor = f"{name}.{suffix}"
        if tensor not in stored:
            raise BadModel(f"tensor {tensor} is missing from the files")
        shape, dtype = stored[tensor]
        if shape != tuple(buffer.shape):
            raise BadModel(f"tensor {tensor} has shape {list(shape)}; its config asks for {list(buffer.shape)}")
        wanted = DTYPES.get(dtype)
        if wanted is None or (wanted != buffer.dtype and not (suffix in FREE and wanted.is_floating_point)):
            raise BadModel(f"tensor {tensor} is of type {dtype}; the layout has {str(buffer.dtype).removeprefix('torch.')} there")
        layer.register_buffer(suffix, buffer.to(wanted))


def kind(name: str) -> str:
    """The name without its numbers: the same for every layer and expert."""
    return re.sub(r"\d+", "*", name)
