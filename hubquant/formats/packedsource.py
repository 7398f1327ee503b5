"""GPTQ and AWQ folders, read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.formats import dynamic
from hubquant.formats.packedformat import FORMATS
from hubquant.model.checkpoint import Checkpoint


class PackedSource:
    """A GPTQ or AWQ folder as a TensorSource: what was published, decoded on `device` to dense float weights.

    Raises BadModel: no such folder, another method or layout, tensors that are missing or do not fit each other.
    """

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        self._device = device
        self._config = _quantization_config(folder)
        method = self._config.get("quant_method")
        if method not in FORMATS:
            raise BadModel(f"{folder}: quantization_config.quant_method is {method!r}; known: {', '.join(FORMATS)}")
        self._format = FORMATS[method]
        self._stored = _AnyCheckpoint(folder)

    def names(self) -> list[str]:
        last = "." + self._format.suffixes[0]
        plain = [n for n in self._stored.names() if n.rpartition(".")[2] not in self._format.suffixes]
        return plain + [n.removesuffix(last) + ".weight" for n in self._stored.names() if n.endswith(last)]

    def tensor(self, name: str) -> Tensor:
        if name in self._stored:
            return self._stored.tensor(name)
        return self._format.dequantize(*self._tensors_of(name.removesuffix(".weight")))

    def as_saved(self, name: str) -> bool:
        return name in self._stored

    def release(self) -> None:
        self._stored.release()

    def _tensors_of(self, stem: str) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
        """The tensors of a packed linear by suffix, and its settings."""
        tensors = {s: self._stored.tensor(f"{stem}.{s}").to(self._device) for s in self._format.suffixes}
        settings = dynamic.of_linear(self._config, stem)
        self._format.check(stem, tensors, settings)
        return tensors, settings


class _AnyCheckpoint(Checkpoint):
    """A checkpoint that may hold packed integers."""

    dtypes = (*Checkpoint.dtypes, "I32")


def _quantization_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
        return dict(config.get("quantization_config") or {})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadModel(f"{folder}/config.json cannot be read as a model's config: {error}") from None
