"""What a model family is to GGUF: which tensors it has, how each is stored, and how it is read back."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gguf
import torch
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.formats.gguf.hyperparameters import Config
from hubquant.formats.gguf.metadata import Value
from hubquant.formats.gguf.rope import ROPE_TENSORS, rope_factors
from hubquant.formats.gguf.tensornames import TensorNames

Shape = tuple[int, ...]
# The hyperparameters as they stand in the file, without "{architecture}.".
Parameters = Mapping[str, Any]
# A view of a Hugging Face tensor (made by view, transpose and slices alone: reading back writes through it).
View = Callable[[Tensor, Parameters], Tensor]

# Buffers that old checkpoints carry; llama.cpp computes them.
_DERIVED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", ".self_attn.bias", ".self_attn.masked_bias")


def _whole(tensor: Tensor, _parameters: Parameters) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Place:
    """One part of a Hugging Face tensor in the file.

    `view` gives the part; its leading dimensions are flattened until `dims` are left (0: as many as the tensor has).
    `name` is the GGUF name below the layer's, "" for the one that gguf's map gives. Tensors that share a GGUF name are joined
    along the first dimension in the order of `index`. `plus` is added to the values. `reads_input`: the stored columns are
    the channels of the input, so that the importance of these applies.
    """

    view: View = _whole
    name: str = ""
    dims: int = 0
    index: int = 0
    plus: float = 0.0
    reads_input: bool = True


def _same(stored: Sequence[Shape], _parameters: Parameters) -> Shape:
    return stored[0]


@dataclass(frozen=True)
class Form:
    """How a Hugging Face tensor is stored: its places, and its shape given the whole shapes of the tensors they are in."""

    places: tuple[Place, ...] = (Place(),)
    shape: Callable[[Sequence[Shape], Parameters], Shape] = _same


AS_IT_IS = Form()
# stands in a name for the number of an expert; its places are joined in the order of the experts
EXPERT = "{expert}"


@dataclass(frozen=True)
class Slot:
    """A Place of one tensor of one model: rows `start`… of the GGUF tensor `gguf_name`, of shape `shape`."""

    gguf_name: str
    place: Place
    shape: Shape
    start: int

    def values(self, tensor: Tensor, parameters: Parameters) -> Tensor:
        """The stored values of a Hugging Face tensor."""
        part = self.place.view(tensor, parameters).reshape(self.shape)
        return part + self.place.plus if self.place.plus else part

    def put_back(self, stored: Tensor, into: Tensor, parameters: Parameters) -> None:
        """The inverse: writes the stored values where they belong in the Hugging Face tensor `into`."""
        view = self.place.view(into, parameters)
        view.copy_((stored - self.place.plus if self.place.plus else stored).reshape(view.shape))


@dataclass(frozen=True)
class Family:
    """`model_types` are values of config.json's model_type; of several rows for one, that for which `applies` to the config.

    `layer` and `optional`: names below `prefix`N. of the tensors that each layer must and may have ({expert} stands for every
    number below the hyperparameter expert_count); `outside`: those beside the layers; `head`: the output matrix, absent if
    tied, None where llama.cpp always ties it. `names`: GGUF names where gguf's own map has none or another. `forms`: how
    tensors are stored that are not stored as they are. `hyperparameters` raises BadModel where llama.cpp would compute
    something else. `extra`: tensors that only llama.cpp has, by GGUF name.
    """

    architecture: str
    model_types: tuple[str, ...]
    hyperparameters: Callable[[Config], dict[str, Value]]
    layer: tuple[str, ...]
    optional: tuple[str, ...] = ()
    outside: tuple[str, ...] = ("model.embed_tokens.weight", "model.norm.weight")
    head: str | None = "lm_head.weight"
    prefix: str = "model.layers."
    names: Mapping[str, str] = field(default_factory=dict)
    forms: Mapping[str, Form] = field(default_factory=dict)
    extra: Callable[[Config], dict[str, Tensor]] = rope_factors
    applies: Callable[[Config], bool] = lambda _config: True

    def is_of(self, stored: Collection[str]) -> bool:
        """Whether a file with these tensors has all that a first layer must have."""
        first = self.layout(1, {"expert_count": 1})
        return all(name in stored for hf_name in first.needed for name in first.gguf_names(hf_name))

    def layout(self, n_layer: int, parameters: Parameters) -> "Layout":
        return Layout(self, n_layer, parameters)


class Layout:
    """The tensors of one model of a family: Hugging Face names and GGUF names, and how one becomes the other."""

    def __init__(self, family: Family, n_layer: int, parameters: Parameters) -> None:
        self.family, self.parameters = family, parameters
        arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
        map_ = TensorNames(arch, n_layer)
        self._places: dict[str, tuple[tuple[str, Place], ...]] = {}
        self._form: dict[str, Form] = {}
        self.needed: list[str] = []

        def learn(prefix: str, gguf_prefix: str, name: str, needed: bool) -> None:
            form, own = family.forms.get(name, AS_IT_IS), family.names.get(name)
            for expert in range(whole_number(parameters, "expert_count") if EXPERT in name else 1):
                hf_name = prefix + name.replace(EXPERT, str(expert))
                named = [(p.name or own, replace(p, index=p.index + expert)) for p in form.places]
                self._places[hf_name] = tuple((gguf_prefix + n if n else _mapped(map_, hf_name), p) for n, p in named)
                self._form[hf_name] = form
                self.needed += [hf_name] * needed

        for name in (*family.outside, *([family.head] if family.head else [])):
            learn("", "", name, name in family.outside)
        for i in range(n_layer):
            for name in (*family.layer, *family.optional):
                learn(f"{family.prefix}{i}.", f"blk.{i}.", name, name in family.layer)
        self.n_layer = n_layer

    def names(self) -> list[str]:
        """Every Hugging Face name that the family knows, optional ones too."""
        return list(self._places)

    def gguf_names(self, hf_name: str) -> tuple[str, ...]:
        """The tensors of the file that hold it; none for a buffer that llama.cpp computes.

        Raises BadModel for a tensor that llama.cpp has no place for.
        """
        if hf_name in self._places:
            return tuple(dict.fromkeys(name for name, _ in self._places[hf_name]))
        if hf_name.endswith(_DERIVED):
            return ()
        layer = hf_name.removeprefix(self.family.prefix).partition(".")[0]
        if hf_name.startswith(self.family.prefix) and layer.isdigit() and int(layer) >= self.n_layer:
            raise BadModel(f"tensor {hf_name} belongs to a layer beyond num_hidden_layers = {self.n_layer}")
        raise BadModel(f"tensor {hf_name} has no place in a GGUF file of architecture {self.family.architecture}")

    def check_complete(self, hf_names: Iterable[str]) -> None:
        """Raises BadModel naming the first tensor that llama.cpp needs and the model lacks."""
        present = set(hf_names)
        for name in self.needed:
            if name not in present:
                raise BadModel(f"the model has no tensor {name}; is the checkpoint complete?")

    def slots(self, shapes: Mapping[str, Shape]) -> tuple[dict[str, tuple[Slot, ...]], dict[str, Shape]]:
        """Where each tensor of `shapes` (Hugging Face names) is stored, and the shapes of the GGUF tensors.

        Raises BadModel if a tensor has no place, or a shape that does not fit the hyperparameters.
        """
        parts: dict[str, list[tuple[int, str, Place, Shape]]] = {}
        for hf_name, shape in shapes.items():
            for name, place in self._places[hf_name] if self.gguf_names(hf_name) else ():
                parts.setdefault(name, []).append((place.index, hf_name, place, self._stored_shape(hf_name, place, shape)))
        slots: dict[str, list[Slot]] = {}
        stored: dict[str, Shape] = {}
        for name, joined in parts.items():
            start = 0
            for _, hf_name, place, shape in sorted(joined, key=lambda part: part[0]):
                if shape[1:] != joined[0][3][1:]:
                    raise BadModel(f"tensor {hf_name} of shape {shape} cannot be joined with {joined[0][1]} of {joined[0][3]}")
                slots.setdefault(hf_name, []).append(Slot(name, place, shape, start))
                start += shape[0]
            stored[name] = (start, *joined[0][3][1:])
        return {hf_name: tuple(found) for hf_name, found in slots.items()}, stored

    def shapes(self, stored: Mapping[str, Shape]) -> dict[str, Shape]:
        """The Hugging Face shapes of the tensors that a file with tensors of these shapes holds.

        Raises BadModel for a GGUF tensor that is not the family's.
        """
        found: dict[str, Shape] = {}
        covered = set(ROPE_TENSORS)
        for hf_name, places in self._places.items():
            held = [stored[name] for name, _ in places if name in stored]
            if len(held) == len(places):
                try:
                    found[hf_name] = self._form[hf_name].shape(held, self.parameters)
                except (IndexError, ValueError):
                    raise BadModel(f"GGUF tensor {places[0][0]!r} has other dimensions than it should: {list(held[0])}") from None
                covered |= {name for name, _ in places}
        if strangers := [name for name in stored if name not in covered]:
            raise BadModel(f"GGUF tensor {strangers[0]!r} is not one of architecture {self.family.architecture}")
        return found

    def _stored_shape(self, hf_name: str, place: Place, shape: Shape) -> Shape:
        dims = place.dims or len(shape)
        try:
            view = place.view(torch.empty(shape, device="meta"), self.parameters)
            stored = tuple(view.flatten(0, view.ndim - dims).shape)
        except (BadModel, RuntimeError, IndexError, ValueError) as error:
            raise BadModel(f"tensor {hf_name} of shape {shape}: {error}") from None
        if not math.prod(stored):
            raise BadModel(f"tensor {hf_name} of shape {shape} would be stored as {stored}; do the hyperparameters fit it?")
        return stored


def _mapped(map_: TensorNames, hf_name: str) -> str:
    stem, _, kind = hf_name.rpartition(".")
    found: str | None = map_.get_name(stem if kind in ("weight", "bias") else hf_name)
    assert found is not None, f"gguf's map has no name for {hf_name}; name it in the family's `names`"
    return f"{found}.{kind if kind == 'bias' else 'weight'}"


def matrices(slots: Iterable[Slot], stored: Mapping[str, Shape]) -> list[tuple[str, range, int]]:
    """What of the file multiplies the input of a tensor in these slots: GGUF names, which matrices of a stack, how many it has."""
    found = []
    for slot in slots:
        if slot.place.reads_input:
            stacked = len(slot.shape) > 2
            of = stored[slot.gguf_name][0] if stacked else 1
            found.append((slot.gguf_name, range(slot.start, slot.start + slot.shape[0]) if stacked else range(1), of))
    return found


def whole_number(parameters: Parameters, key: str) -> int:
    """A positive whole number of a file's hyperparameters. Raises BadModel if there is none."""
    value = parameters.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise BadModel(f"{key} is {value!r}, expected a positive whole number")
    return value
