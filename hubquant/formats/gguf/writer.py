"""A GGUF file written tensor by tensor, in any order: all types and offsets are known before the first tensor arrives."""

from collections.abc import Callable, Collection, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from hubquant.artifact import TensorRecord
from hubquant.calibrate.statistics import InputStatistics
from hubquant.errors import BadModel
from hubquant.formats.gguf.families import family_of_model
from hubquant.formats.gguf.families.family import Slot, matrices, whole_number
from hubquant.formats.gguf.file import GgufFile, TensorPlan
from hubquant.formats.gguf.hyperparameters import completed
from hubquant.formats.gguf.imatrix import ImatrixInfo
from hubquant.formats.gguf.metadata import Provenance, Value, general
from hubquant.formats.gguf.mixtures import Chosen, Dimensions, mixture, tensor_types
from hubquant.formats.gguf.tokenizer import tokenizer_values
from hubquant.quantize.compensation import Factor
from hubquant.quantize.feedback import encode_and_weigh
from hubquant.quantize.ggml import GGML_TYPES, NEEDS_IMPORTANCE, decode, encode
from hubquant.recipe import MAX_FILE_BYTES, Variant


class GgufWriter:
    """One GGUF file of one model. It stands under its name only after `finish`; until then `path`.part grows.

    `tensors`: Hugging Face name → shape of every tensor of the checkpoint. Used as a context manager, an exception removes
    what was written. Raises BadModel, before anything is written, if llama.cpp would not compute what the model does, or a
    tensor is missing; DiskFull if the file does not fit. `chosen` stands for the mixture of the variant where that is none.
    """

    def __init__(
        self,
        path: Path,
        checkpoint_folder: Path,
        config: Mapping[str, Any],
        variant: Variant,
        *,
        tensors: Mapping[str, tuple[int, ...]],
        provenance: Provenance,
        imatrix: ImatrixInfo | None = None,
        max_bytes: int = MAX_FILE_BYTES,
        chosen: Chosen | None = None,
    ) -> None:
        self.path = path
        self._family = family_of_model(config)
        whole = completed(config)
        self._parameters = self._family.hyperparameters(whole)
        n_layer = whole_number(self._parameters, "block_count")
        layout = self._family.layout(n_layer, self._parameters)
        tied = bool(whole.get("tie_word_embeddings"))
        announced = {hf: shape for hf, shape in tensors.items() if not (tied and hf == self._family.head)}
        self._announced = {hf: tuple(shape) for hf, shape in announced.items() if layout.gguf_names(hf)}
        layout.check_complete(self._announced)
        self._slots, shapes = layout.slots(self._announced)
        n_vocab = shapes["token_embd.weight"][0]
        if n_vocab != whole["vocab_size"]:
            raise BadModel(f"the embedding has {n_vocab} rows, config.json says vocab_size {whole['vocab_size']}")
        extra = self._family.extra(whole)
        shapes |= {name: tuple(tensor.shape) for name, tensor in extra.items()}
        heads = whole_number(self._parameters, "attention.head_count")
        heads_kv = whole_number(self._parameters, "attention.head_count_kv")
        experts = whole_number(self._parameters, "expert_count") if "expert_count" in self._parameters else 0
        dimensions = Dimensions(self._family.architecture, n_layer, heads, heads_kv, experts)
        called = mixture(variant.mixture) if chosen is None else chosen.called
        self._base = called.base
        if chosen is None:
            self._types = tensor_types(variant.mixture, shapes, dimensions, imatrix is not None)
        else:
            self._types = dict(chosen.types(shapes))
        self._shapes = shapes
        parameters = sum(prod(shape) for shape in shapes.values())
        entries = sum(len(shape) > 1 and name.startswith("blk.") for name, shape in shapes.items())
        values: dict[str, Value] = {
            **general(provenance, called, imatrix, parameters, entries),
            **{f"{self._family.architecture}.{key}": value for key, value in self._parameters.items()},
            **tokenizer_values(checkpoint_folder, config, n_vocab, provenance.name),
        }
        self._missing = set(self._announced)
        self.plans = {name: TensorPlan(self._types[name], shape) for name, shape in shapes.items()}
        self._file = GgufFile(path, self._family.architecture, values, self.plans, max_bytes)
        for name, tensor in extra.items():
            self._file.write(name, 0, encode(tensor[None], "F32"))

    def gguf_names(self, hf_name: str) -> tuple[str, ...]:
        """The tensors of the file that hold it; none if it is not stored: a tied lm_head, a buffer that llama.cpp computes."""
        return tuple(dict.fromkeys(slot.gguf_name for slot in self._slots.get(hf_name, ())))

    def matrices(self, hf_name: str) -> list[tuple[str, range, int]]:
        """What of the file multiplies the tensor's input: GGUF names, which matrices of a stack, and how many that has."""
        return matrices(self._slots.get(hf_name, ()), self._shapes)

    def type_of(self, hf_name: str) -> str | None:
        """The ggml type chosen for a tensor (its parts' types, if they differ, with + between), None if it is not stored."""
        return "+".join(dict.fromkeys(self._types[name] for name in self.gguf_names(hf_name))) or None

    def add(
        self,
        hf_name: str,
        weight: Tensor,
        importance: Tensor | None = None,
        statistics: InputStatistics | None = None,
        measure: Callable[[Tensor, Tensor], float] | None = None,
    ) -> TensorRecord:
        """Encodes and writes one tensor that type_of knows.

        `importance` [in]: mean squared input of each column, or [experts, in] for a stack of experts. With the input's
        `statistics`, which give the importance too, each column makes up for the errors of those before it, and the record has an
        output_error. Without them `measure(weight, stored)`, given the float32 tensors before and after, both in Hugging Face
        order, returns it.
        """
        if tuple(weight.shape) != self._announced[hf_name]:
            raise BadModel(f"tensor {hf_name} has shape {tuple(weight.shape)}, announced was {self._announced[hf_name]}")
        slots, loss = self._slots[hf_name], 0.0
        if statistics is not None:
            importance, measure = statistics.importance, statistics.output_error
        factors = [_factor(statistics, slot) for slot in slots]
        back = None if measure is None or all(factors) else torch.empty_like(weight, dtype=torch.float32)
        for slot, factor in zip(slots, factors, strict=True):
            kind = self._types[slot.gguf_name]
            values = slot.values(weight, self._parameters)
            try:
                if factor is not None:
                    data, losses = encode_and_weigh(values.flatten(0, -2), kind, factor)
                    loss += float(losses.sum())
                else:
                    data = _encoded(values, kind, importance if slot.place.reads_input else _equal(values, kind))
            except BadModel as error:
                raise BadModel(f"tensor {hf_name}: {error}") from None
            self._file.write(slot.gguf_name, slot.start, data)
            if back is not None:
                slot.put_back(decode(data, kind).view(values.shape), back, self._parameters)
        self._missing.remove(hf_name)
        output_error = None
        if measure is not None and back is not None:
            output_error = measure(weight.float(), back)
        elif statistics is not None:
            output_error = statistics.relative(loss, weight)
        note = self._note(self._slots[hf_name])
        return TensorRecord(name=hf_name, type=self.type_of(hf_name) or "", output_error=output_error, note=note)

    def copy(self, sources: Mapping[str, "GgufWriter"]) -> None:
        """Takes every tensor as another writer of the same model has it: GGUF name → writer."""
        for name, source in sources.items():
            self._file.copy(name, source._file)
        self._missing.clear()

    def finish(self) -> None:
        """Makes the file durable and gives it its name. Raises BadModel if a tensor was never added."""
        if self._missing:
            first = min(self._missing)
            raise BadModel(f"{self.path.name}: {len(self._missing)} tensors were never written, the first is {first}")
        self._file.finish()

    def state(self) -> list[str]:
        """The tensors that are still missing, for `restore`; returns when the disk has the others."""
        self._file.sync()
        return sorted(self._missing)

    def restore(self, missing: Collection[str]) -> None:
        """Go on in the file that a killed process left."""
        self._file.restore()
        self._missing = set(missing)

    @property
    def size_bytes(self) -> int:
        """Of the whole file, which takes its place before the first tensor comes."""
        return self._file.size_bytes

    @property
    def paths(self) -> list[Path]:
        """The file, or its shards in order."""
        return self._file.paths

    def discard(self) -> None:
        """Removes what was written so far."""
        self._file.discard()

    def __enter__(self) -> "GgufWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.discard()

    def _note(self, slots: tuple[Slot, ...]) -> str:
        for slot in slots:
            name, width = slot.gguf_name, slot.shape[-1]
            if len(slot.shape) > 1 and width % GGML_TYPES[self._base].block_size:
                return f"rows of {width} are no whole blocks of {self._base}: {self._types[name]}, as llama.cpp does"
        return ""


def _equal(values: Tensor, kind: str) -> Tensor | None:
    """The importance of columns of which nothing is known."""
    return values.new_ones(values.shape[-1]) if kind in NEEDS_IMPORTANCE else None


def _factor(statistics: InputStatistics | None, slot: Slot) -> Factor | None:
    """For error feedback in the rows of a slot; None where these are not what reads the input, or nothing is known of it."""
    if statistics is None or not slot.place.reads_input or slot.shape[-1] != statistics.width:
        return None
    return statistics.factor


def _encoded(values: Tensor, kind: str, importance: Tensor | None) -> Tensor:
    """uint8 [rows, row_bytes]; each matrix of a stack with its own row of `importance`, if that has one for each."""
    if importance is None or importance.ndim == 1:
        return encode(values.flatten(0, -2) if values.ndim > 1 else values[None], kind, importance)
    return torch.cat([encode(matrix, kind, own) for matrix, own in zip(values, importance, strict=True)])
