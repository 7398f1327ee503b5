"""A GGUF file whose scales may change: its weights are computed from them, and they can be written back."""

import math
from pathlib import Path

import torch
from torch import Tensor

from hubquant.formats.gguf.families.family import Slot
from hubquant.formats.gguf.reader import GgufSource
from hubquant.quantize.scales import SCALES, parts_of, scales_of, smallest, with_scales


class GgufScales(GgufSource):
    """`scales`: of the layers' matrices, by their names in the file, float32 [k, rows, blocks]; what they are replaced by is what
    `tensor` computes weights from, with gradients. `bits`: per weight, of the tensors that they are of."""

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        super().__init__(path, device)
        kinds = {name: tensor.kind.name for name, tensor in self.header.tensors.items() if len(tensor.shape) > 1}
        self._kinds = {name: kind for name, kind in kinds.items() if kind in SCALES and name.startswith("blk.")}
        self.scales = {n: scales_of(self.header.blocks(n), kind).to(device) for n, kind in self._kinds.items()}
        self.bits = {name: self.header.tensors[name].kind.bits_per_weight for name in self.scales}
        self._parts: dict[str, Tensor] = {}

    def write(self, scales: dict[str, Tensor]) -> list[Path]:
        for name, values in scales.items():
            stored = self.header.tensors[name]
            changed = with_scales(self.header.blocks(name), stored.kind.name, values.cpu())
            with self.header.files[stored.shard].open("r+b") as file:
                file.seek(stored.offset)
                file.write(changed.numpy().data)
        return list(self.header.files)

    def _decoded(self, slot: Slot) -> Tensor:
        name = slot.gguf_name
        if name not in self.scales:
            return super()._decoded(slot)
        if name not in self._parts:
            self._parts[name] = smallest(parts_of(self.header.blocks(name), self._kinds[name])).to(self.device)
        shape, scales = self.header.tensors[name].shape, self.scales[name]
        each = math.prod(shape[1:-1])
        rows = slice(slot.start * each, (slot.start + slot.shape[0]) * each)
        parts = self._parts[name][:, rows].unflatten(-1, (scales.shape[-1], -1))
        return (scales[:, rows, :, None] * parts).sum(0).reshape(-1, *shape[1:])
