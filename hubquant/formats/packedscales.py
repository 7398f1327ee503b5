"""A GPTQ or AWQ folder whose scales may change: its weights are computed from them, and they can be written back."""

from pathlib import Path

import torch
from torch import Tensor

from hubquant.formats import dynamic
from hubquant.formats.packedsource import PackedSource
from hubquant.formats.shards import overwrite
from hubquant.quantize.scales import smallest

SCALES = ".scales"


class PackedScales(PackedSource):
    """`scales`: by their names in the folder, float32 [n_groups, out]; what they are replaced by is what `tensor` computes weights
    from, with gradients. `bits`: per weight, of the linears that they are of."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        super().__init__(folder, device)
        self._folder = folder
        self.scales = {n: self._stored.tensor(n).float().to(device) for n in self._stored.names() if n.endswith(SCALES)}
        self.bits = {n: float(dynamic.of_linear(self._config, n.removesuffix(SCALES))["bits"]) for n in self.scales}
        self._codes: dict[str, tuple[Tensor, Tensor | None]] = {}

    def write(self, scales: dict[str, Tensor]) -> list[Path]:
        halves = {name: values.half().cpu() for name, values in scales.items()}
        paths = sorted(self._folder.glob("*.safetensors"))
        for path in paths:
            overwrite(path, halves)
        return paths

    def tensor(self, name: str) -> Tensor:
        stem = name.removesuffix(".weight")
        if stem + SCALES not in self.scales:
            return super().tensor(name)
        if stem not in self._codes:
            self._codes[stem] = self._by_group(stem)
        codes, place = self._codes[stem]
        scales = self.scales[stem + SCALES].T
        weight = (codes.unflatten(1, (scales.shape[1], -1)) * scales.unsqueeze(-1)).flatten(1)
        return weight if place is None else weight[:, place]

    def _by_group(self, stem: str) -> tuple[Tensor, Tensor | None]:
        """Codes minus zeros [out, in], group by group, and where each column stands in that order, unless it is the files'."""
        tensors, settings = self._tensors_of(stem)
        codes = smallest(self._format.dequantize({**tensors, "scales": torch.ones_like(tensors["scales"])}, settings))
        group = tensors.get("g_idx")
        if group is None or bool((group.diff() >= 0).all()):
            return codes, None
        order = group.argsort(stable=True)
        return codes[:, order], order.argsort()
