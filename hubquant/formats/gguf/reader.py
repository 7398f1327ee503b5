"""The weights of a GGUF file as the model that evaluates it wants them: by Hugging Face name, dense, in Hugging Face order."""

from pathlib import Path

import torch
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.formats.gguf.families import family_of_file
from hubquant.formats.gguf.families.family import Slot, matrices, whole_number
from hubquant.formats.gguf.header import GgufHeader


class GgufSource:
    """A GGUF file, memory-mapped and decoded tensor by tensor on `device`. `parameters`: its hyperparameters, without
    "{architecture}.".

    Raises BadModel on anything malformed.
    """

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        self.device = device
        self.header = GgufHeader.read(path)
        architecture = self.header.values.get("general.architecture")
        if not isinstance(architecture, str):
            raise BadModel(f"{path.name} does not say which architecture it is of (general.architecture)")
        prefix = f"{architecture}."
        self.family = family_of_file(architecture, self.header.tensors)
        self.parameters = {k.removeprefix(prefix): v for k, v in self.header.values.items() if k.startswith(prefix)}
        n_layer = whole_number(self.parameters, "block_count")
        stored = {name: tensor.shape for name, tensor in self.header.tensors.items()}
        if n_layer > len(stored):
            raise BadModel(f"{path.name}: {prefix}block_count is {n_layer}, more than the file has tensors")
        experts = self.parameters.get("expert_count", 0)
        if isinstance(experts, int) and experts > max((shape[0] for shape in stored.values() if len(shape) > 2), default=0):
            raise BadModel(f"{path.name}: {prefix}expert_count is {experts}, more than any tensor has matrices")
        layout = self.family.layout(n_layer, self.parameters)
        self._shapes = layout.shapes(stored)
        self._slots, expected = layout.slots(self._shapes)
        for name, shape in expected.items():
            if stored[name] != shape:
                raise BadModel(f"{path.name}: tensor {name!r} has shape {list(stored[name])}, expected was {list(shape)}")

    def names(self) -> list[str]:
        """Hugging Face names; a tied lm_head is not among them."""
        return list(self._shapes)

    def matrices(self, name: str) -> list[tuple[str, range, int]]:
        """What of the file multiplies the tensor's input: GGUF names, which matrices of a stack, and how many that has."""
        shapes = {stored: tensor.shape for stored, tensor in self.header.tensors.items()}
        return matrices(self._slots_of(name), shapes)

    def type_of(self, name: str) -> str:
        """The ggml type that the tensor is stored in; of its first part if it has several."""
        return self.header.tensors[self._slots_of(name)[0].gguf_name].kind.name

    def tensor(self, name: str) -> Tensor:
        """float32, decoded from the published bytes. Raises BadModel if the file has none of that name."""
        slots = self._slots_of(name)
        weight = torch.empty(self._shapes[name], device=self.device)
        for slot in slots:
            slot.put_back(self._decoded(slot), weight, self.parameters)
        return weight

    def as_saved(self, name: str) -> bool:
        return False

    def release(self) -> None:
        self.header.release()

    def _decoded(self, slot: Slot) -> Tensor:
        return self.header.tensor(slot.gguf_name, slot.start, slot.shape[0], self.device)

    def _slots_of(self, name: str) -> tuple[Slot, ...]:
        if name not in self._slots:
            raise BadModel(f"{self.header.name}: no tensor {name} in the file")
        return self._slots[name]
