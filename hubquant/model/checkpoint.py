"""A checkpoint folder read lazily: safetensors only, memory-mapped, one tensor at a time."""

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.model import mxfp4


class TensorSource(Protocol):
    """Anything that gives dense weights by their Hugging Face names: a checkpoint, or what was published, decoded."""

    def names(self) -> list[str]: ...

    def tensor(self, name: str) -> Tensor: ...

    def as_saved(self, name: str) -> bool:
        """Whether a linear's weight lies as transformers saves it, where that is not [out, in] (GPT-2)."""
        ...

    def release(self) -> None:
        """Give back the memory of the files' pages that were read. Tensors that are still in use stay as they are."""


class Checkpoint:
    """The weights of a folder as `from_pretrained` finds them: `model.safetensors` or the shards of its index.

    What is published as MXFP4 is decoded. Raises BadModel if the weights are pickles, a shard is missing or truncated, or a tensor
    is not of a float type.
    """

    dtypes: tuple[str, ...] = ("F64", "F32", "F16", "BF16")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: dict[str, Any] = {}
        self._shard_of: dict[str, str] = {}
        self._read: set[str] = set()  # shards of which something was read since the last release
        for file in self._files():
            self._open(file)
        expected = self._index()
        for name in sorted(set(expected) - set(self._shard_of)):
            raise BadModel(f"{folder}: tensor {name} is listed in the index for {expected[name]}, which does not hold it")
        self._packed = mxfp4.packed_names(self._shard_of)
        packs = self._packs()
        for name in self._shard_of:
            dtype = self._slice(name).get_dtype()
            if dtype not in (("U8",) if name in packs else self.dtypes):
                raise BadModel(f"{self._shard_of[name]}: tensor {name} has dtype {dtype}; expected one of {', '.join(self.dtypes)}")

    def names(self) -> list[str]:
        packs = self._packs()
        return [name for name in self._shard_of if name not in packs] + sorted(self._packed)

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of or name in self._packed

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self._packed:
            return mxfp4.shape(tuple(self._slice(name + mxfp4.BLOCKS).get_shape()))
        return tuple(self._slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """The tensor in its stored dtype. Raises BadModel naming the tensor if it is missing, NaN or infinite."""
        if name in self._packed:
            return torch.stack([self.entry(name, index) for index in range(self.shape(name)[0])])
        if name not in self._shard_of:
            raise BadModel(f"{self.folder}: no tensor {name} in the checkpoint; is it complete?")
        self._read.add(self._shard_of[name])
        value: Tensor = self._shards[self._shard_of[name]].get_tensor(name)
        return self._finite(name, value)

    def as_saved(self, name: str) -> bool:
        return True

    def release(self) -> None:
        """The pages of a mapped file count as this process's memory until nothing maps them any more."""
        while self._read:
            self._open(self._read.pop())

    def entry(self, name: str, index: int) -> Tensor:
        """tensor(name)[index] without reading the rest: one expert of fused ones."""
        if name in self._packed:
            return mxfp4.decode(*(self._slice(name + suffix)[index] for suffix in (mxfp4.BLOCKS, mxfp4.SCALES)))
        value: Tensor = self._slice(name)[index]
        return self._finite(name, value)

    def _packs(self) -> set[str]:
        return {name + suffix for name in self._packed for suffix in (mxfp4.BLOCKS, mxfp4.SCALES)}

    def _finite(self, name: str, value: Tensor) -> Tensor:
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise BadModel(f"{self._shard_of[name]}: tensor {name} holds {bad} NaN or infinite values; the base is damaged")
        return value

    def _slice(self, name: str) -> Any:
        self._read.add(self._shard_of[name])
        return self._shards[self._shard_of[name]].get_slice(name)

    def _index(self) -> dict[str, str]:
        index = self.folder / "model.safetensors.index.json"
        if not index.exists():
            return {}
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
            return {str(name): str(file) for name, file in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadModel(f"{index.name} is not a safetensors index (no weight_map)") from None

    def _files(self) -> list[str]:
        index = self._index()
        if index:
            return sorted(set(index.values()))
        if (self.folder / "model.safetensors").exists():
            return ["model.safetensors"]
        pickles = sorted(p.name for p in self.folder.glob("*.bin")) + sorted(p.name for p in self.folder.glob("*.pt*"))
        if pickles:
            raise BadModel(f"{self.folder.name} has only pickled weights ({pickles[0]}); hubquant reads safetensors only")
        raise BadModel(f"{self.folder} holds no model.safetensors and no index of shards")

    def _open(self, file: str) -> None:
        path = self.folder / file
        if Path(file).name != file:
            raise BadModel(f"the index names a shard outside the folder: {file!r}")
        if not path.exists():
            raise BadModel(f"{self.folder.name}: shard {file} is missing")
        try:
            shard = safe_open(path, framework="pt")
            names = list(shard.keys())
        except (SafetensorError, OSError) as error:
            raise BadModel(f"{file} is damaged or truncated: {error}") from None
        self._shards[file] = shard
        for name in names:
            self._shard_of[name] = file
