"""The weights of a GGUF file as the model that evaluates it wants them: by Hugging Face name, dense, in Hugging Face order."""

from pathlib import Path

import torch
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.formats.gguf.families import ROPE_FREQS, family_of_file
from hubquant.formats.gguf.header import GgufHeader


class GgufSource:
    """A GGUF file, memory-mapped and decoded tensor by tensor. Raises BadModel on anything malformed."""

    def __init__(self, path: Path) -> None:
        self.header = GgufHeader.read(path)
        architecture = self.header.values.get("general.architecture")
        if not isinstance(architecture, str):
            raise BadModel(f"{path.name} does not say which architecture it is of (general.architecture)")
        self.family = family_of_file(architecture)
        self._heads = self.header.positive(f"{architecture}.attention.head_count")
        self._heads_kv = self.header.positive(f"{architecture}.attention.head_count_kv")
        self._stored = {self.family.hf_name(name): name for name in self.header.tensors if name != ROPE_FREQS}

    def names(self) -> list[str]:
        """Hugging Face names; a tied lm_head is not among them."""
        return list(self._stored)

    def type_of(self, name: str) -> str:
        """The ggml type that the tensor is stored in."""
        return self.header.tensors[self._gguf_name(name)].kind.name

    def tensor(self, name: str) -> Tensor:
        """float32, decoded from the published bytes. Raises BadModel if the file has none of that name."""
        stored = self._gguf_name(name)
        weight = self.header.tensor(stored)
        rows = self.family.stored_rows(stored, tuple(weight.shape), self._heads, self._heads_kv)
        return weight if rows is None else torch.empty_like(weight).index_copy_(0, rows, weight)

    def _gguf_name(self, name: str) -> str:
        if name not in self._stored:
            raise BadModel(f"{self.header.name}: no tensor {name} in the file")
        return self._stored[name]
