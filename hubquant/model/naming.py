"""What a model's tensors are called on disk, and where a source holds them.

The house speaks the names of the modules, with experts one by one (`…mlp.experts.3.gate_proj.weight`). Published checkpoints may
say it differently (Mixtral: `…block_sparse_moe.experts.3.w1.weight`) or hold the experts fused; transformers knows how, and is
asked: its conversions are reversed, as `save_pretrained` does.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    apply_converters,
    apply_renamings,
    revert_weight_conversion,
)

from hubquant.model.checkpoint import Checkpoint, TensorSource
from hubquant.model.experts import Experts

if TYPE_CHECKING:  # its import puts our loaders in place, which import this module
    from transformers import PreTrainedModel


class StoredNames:
    """Names of the published form. Made before the experts are taken apart, since transformers knows them fused."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self._read = [c for c in get_model_conversion_mapping(model) if isinstance(c, WeightRenaming)]
        kept = [c for c in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(c, PrefixChange)]
        reversed_ = [c.reverse_transform() for c in reversed(kept)]
        self.renamings = [c for c in reversed_ if isinstance(c, WeightRenaming)]
        self._converters = [c for c in reversed_ if isinstance(c, WeightConverter)]
        self._model = model
        self.prefix = f"{model.base_model_prefix}."  # the checkpoints of some old models (gpt2) leave it out
        self._linears: dict[str, str] = {}
        self._published: dict[str, str] = {}

    def read_as(self, name: str) -> str:
        """What transformers calls a tensor that a checkpoint holds under this name, which may be an older one or that of a larger
        model whose part this is (the text of a multimodal one)."""
        found: str = apply_renamings(name, self._read)
        return found

    def publish(self, name: str, as_: str) -> None:
        """This one tensor has another name on disk, and keeps it."""
        self._published[name] = as_

    def learn(self, path: str, experts: Experts) -> None:
        """The names of the linears of one list of experts, if the published form has them one by one.

        Found by sending numbered stand-ins of the fused parameters the way that transformers saves them.
        """
        fused = experts.fused
        numbered: dict[str, Tensor] = {}
        meaning: dict[int, str] = {}
        for linear in fused.linears:
            name = f"{path}.{fused.parameter(f'{linear}.weight')}"
            rows = 2 if fused.has_gate and linear != "down_proj" else 1
            shape = (fused.count, 1, rows) if fused.transposed else (fused.count, rows, 1)
            stand_in = numbered.setdefault(name, torch.full(shape, -1.0))
            for index in range(fused.count):
                number = len(meaning)
                entry = stand_in[index].view(-1)
                entry[1 if linear == "up_proj" and rows == 2 else 0] = number
                meaning[number] = f"{path}.{index}.{linear}.weight"
        for stored, value in revert_weight_conversion(self._model, numbered).items():
            if value.numel() == 1:
                self._linears[meaning[int(value)]] = stored

    def stored(self, name: str) -> str:
        """The published name of a tensor; the module's own where the published form joins it with others."""
        weight = name.rpartition(".")[0] + ".weight"
        for known in (self._linears, self._published):
            if name in known:
                return known[name]
            if weight in known:  # a packed tensor or a bias beside a weight
                return known[weight].rpartition(".")[0] + "." + name.rpartition(".")[2]
        _, matched = apply_converters(name, self._converters)
        renamed: str = name if matched is not None else apply_renamings(name, self.renamings)
        return renamed


@dataclass(frozen=True)
class Place:
    """Where a source holds a tensor: all of `name`, or a part of one expert's entry of it."""

    name: str
    experts: Experts | None = None
    index: int = 0
    tensor: str = ""

    def part(self, entry: Tensor) -> Tensor:
        return entry if self.experts is None else self.experts.fused.part(self.tensor, entry)


class NamedSource:
    """A TensorSource that is asked by the names of the modules, whatever its own names are."""

    def __init__(
        self, source: TensorSource, stored: StoredNames, experts: Mapping[str, Experts], transposed: Collection[str]
    ) -> None:
        """`transposed`: weights that lie as [in, out] where the source has them as saved."""
        self.source, self._stored, self._experts, self._transposed = source, stored, experts, transposed
        self._names = set(source.names())
        self._read_as = {stored.read_as(name): name for name in source.names()}
        for name, found in self._read_as.items():
            if not self._names.intersection(self._usual(name)):
                stored.publish(name, found)

    def find(self, name: str) -> Place | None:
        """None if the source does not hold the tensor."""
        for candidate in (*self._usual(name), self._read_as.get(name, "")):
            if candidate in self._names:
                return Place(candidate)
        path = next((p for p in self._experts if name.startswith(p + ".")), None)
        if path is None:
            return None
        index, _, tensor = name.removeprefix(path + ".").partition(".")
        if not index.isdigit():
            return None
        experts = self._experts[path]
        fused = f"{path}.{experts.fused.parameter(tensor)}"
        found = next((n for n in (fused, apply_renamings(fused, self._stored.renamings)) if n in self._names), None)
        return None if found is None else Place(found, experts, int(index), tensor)

    def _usual(self, name: str) -> tuple[str, str, str]:
        return self._stored.stored(name), name, name.removeprefix(self._stored.prefix)

    def rest(self, model: nn.Module, names: Collection[str]) -> list[str]:
        """What the source holds beside the tensors `names` of the model and belongs to none of its modules: other parts of a larger
        model (vision, audio), heads for several tokens."""
        places = {place.name for name in names if (place := self.find(name)) is not None}
        modules = {name for name, _ in model.named_modules()} | {name.partition(".experts.")[0] + ".experts" for name in names}
        owners = {name: self._stored.read_as(name).rpartition(".")[0] for name in sorted(self._names - places)}
        return [n for n, owner in owners.items() if not {owner, self._stored.prefix + owner} & modules]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a checkpoint's tensor, without reading it; None if it is not there."""
        place = self.find(name)
        if place is None or not isinstance(self.source, Checkpoint):
            return None
        shape = self.source.shape(place.name)
        if name in self._transposed:
            return shape[::-1]
        return shape if place.experts is None else tuple(place.part(torch.empty(shape[1:], device="meta")).shape)

    def tensor(self, name: str) -> Tensor:
        place = self.find(name)
        if place is not None and place.experts is not None and isinstance(self.source, Checkpoint):
            return place.part(self.source.entry(place.name, place.index))
        stored = name if place is None else place.name
        tensor = self.source.tensor(stored)
        return tensor.T if name in self._transposed and self.source.as_saved(stored) else tensor

    def release(self) -> None:
        self.source.release()
