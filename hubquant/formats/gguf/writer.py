"""A GGUF file written tensor by tensor, in any order: all types and offsets are known before the first tensor arrives."""

import errno
import os
import sys
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from hubquant.artifact import TensorRecord
from hubquant.errors import BadModel, DiskFull
from hubquant.formats.gguf.families import family_of_model
from hubquant.formats.gguf.families.family import Slot, whole_number
from hubquant.formats.gguf.hyperparameters import completed
from hubquant.formats.gguf.imatrix import ImatrixInfo
from hubquant.formats.gguf.metadata import Provenance, Value, general
from hubquant.formats.gguf.mixtures import Dimensions, mixture, tensor_types
from hubquant.formats.gguf.tokenizer import tokenizer_values
from hubquant.quantize.ggml import GGML_TYPES, decode, encode, row_bytes
from hubquant.recipe import Variant


class GgufWriter:
    """One GGUF file of one model. It stands under its name only after `finish`; until then `path`.part grows.

    `tensors`: Hugging Face name → shape of every tensor of the checkpoint. Used as a context manager, an exception removes
    what was written. Raises BadModel, before anything is written, if llama.cpp would not compute what the model does, or a
    tensor is missing; DiskFull if the file does not fit.
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
    ) -> None:
        self.path = path
        self._part = path.with_name(path.name + ".part")
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
        self._base = mixture(variant.mixture).base
        self._types = tensor_types(variant.mixture, shapes, dimensions, imatrix is not None)
        self._shapes = shapes
        parameters = sum(prod(shape) for shape in shapes.values())
        entries = sum(len(shape) > 1 and name.startswith("blk.") for name, shape in shapes.items())
        values: dict[str, Value] = {
            **general(provenance, mixture(variant.mixture), imatrix, parameters, entries),
            **{f"{self._family.architecture}.{key}": value for key, value in self._parameters.items()},
            **tokenizer_values(checkpoint_folder, config, n_vocab),
        }
        self._missing = set(self._announced)
        self._reserve(values)
        for name, tensor in extra.items():
            self._write(name, 0, encode(tensor[None], "F32"))

    def gguf_names(self, hf_name: str) -> tuple[str, ...]:
        """The tensors of the file that hold it; none if it is not stored: a tied lm_head, a buffer that llama.cpp computes."""
        return tuple(dict.fromkeys(slot.gguf_name for slot in self._slots.get(hf_name, ())))

    def type_of(self, hf_name: str) -> str | None:
        """The ggml type chosen for a tensor (its parts' types, if they differ, with + between), None if it is not stored."""
        return "+".join(dict.fromkeys(self._types[name] for name in self.gguf_names(hf_name))) or None

    def add(
        self,
        hf_name: str,
        weight: Tensor,
        importance: Tensor | None = None,
        measure: Callable[[Tensor, Tensor], float] | None = None,
    ) -> TensorRecord:
        """Encodes and writes one tensor that type_of knows.

        `importance` [in]: mean squared input of each column, or [experts, in] for a stack of experts. `measure(weight,
        stored)`, given the float32 tensors before and after, both in Hugging Face order, returns the record's output_error.
        """
        if tuple(weight.shape) != self._announced[hf_name]:
            raise BadModel(f"tensor {hf_name} has shape {tuple(weight.shape)}, announced was {self._announced[hf_name]}")
        back = None if measure is None else torch.empty_like(weight, dtype=torch.float32)
        for slot in self._slots[hf_name]:
            kind = self._types[slot.gguf_name]
            values = slot.values(weight, self._parameters)
            try:
                data = _encoded(values, kind, importance if slot.place.reads_input else None)
            except BadModel as error:
                raise BadModel(f"tensor {hf_name}: {error}") from None
            self._write(slot.gguf_name, slot.start, data)
            if back is not None:
                slot.put_back(decode(data, kind).view(values.shape), back, self._parameters)
        self._missing.remove(hf_name)
        error = None if measure is None or back is None else measure(weight.float(), back)
        return TensorRecord(
            name=hf_name, type=self.type_of(hf_name) or "", output_error=error, note=self._note(self._slots[hf_name])
        )

    def finish(self) -> None:
        """Makes the file durable and gives it its name. Raises BadModel if a tensor was never added."""
        if self._missing:
            first = min(self._missing)
            raise BadModel(f"{self.path.name}: {len(self._missing)} tensors were never written, the first is {first}")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self.path)

    def discard(self) -> None:
        """Removes what was written so far."""
        self._file.close()
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> "GgufWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._file.closed:
            self.discard()

    def _note(self, slots: tuple[Slot, ...]) -> str:
        for slot in slots:
            name, width = slot.gguf_name, slot.shape[-1]
            if len(slot.shape) > 1 and width % GGML_TYPES[self._base].block_size:
                return f"rows of {width} are no whole blocks of {self._base}: {self._types[name]}, as llama.cpp does"
        return ""

    def _reserve(self, values: Mapping[str, Value]) -> None:
        """Writes the header and takes the disk space of everything that will follow."""
        writer = gguf.GGUFWriter(None, self._family.architecture)
        for key, value in values.items():
            add_value(writer, key, value)
        self._offset: dict[str, int] = {}
        end = 0
        for name, shape in self._shapes.items():
            kind = self._types[name]
            size = row_bytes(kind, shape[-1]) * prod(shape[:-1])
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, gguf.GGMLQuantizationType(GGML_TYPES[kind].value))
            self._offset[name] = end
            end = writer.ggml_pad(end + size, writer.data_alignment)
        try:
            writer.write_header_to_file(self._part)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        except (UnicodeEncodeError, OSError) as error:
            self._part.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _disk_error(error, self._part, end) from None
            raise BadModel(f"the tokenizer, chat template or card holds text that is not Unicode: {error}") from None
        finally:
            writer.close()
        start = writer.ggml_pad(self._part.stat().st_size, writer.data_alignment)
        self._offset = {name: start + offset for name, offset in self._offset.items()}
        self._file = self._part.open("r+b")
        try:
            if sys.platform == "linux":
                os.posix_fallocate(self._file.fileno(), 0, start + end)
            else:
                self._file.truncate(start + end)
        except OSError as error:
            self.discard()
            raise _disk_error(error, self._part, end) from None

    def _write(self, name: str, start: int, data: Tensor) -> None:
        """Encoded rows of a tensor, from `start` of its first dimension on."""
        kind, shape = self._types[name], self._shapes[name]
        each = prod(shape[1:-1]) * row_bytes(kind, shape[-1]) if len(shape) > 1 else row_bytes(kind, 1)
        try:
            self._file.seek(self._offset[name] + start * each)
            self._file.write(data.cpu().contiguous().numpy().data)
        except OSError as error:
            raise _disk_error(error, self._part, data.numel()) from None


def _encoded(values: Tensor, kind: str, importance: Tensor | None) -> Tensor:
    """uint8 [rows, row_bytes]; each matrix of a stack with its own row of `importance`, if that has one for each."""
    if importance is None or importance.ndim == 1:
        return encode(values.flatten(0, -2) if values.ndim > 1 else values[None], kind, importance)
    return torch.cat([encode(matrix, kind, own) for matrix, own in zip(values, importance, strict=True)])


def add_value(writer: Any, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _disk_error(error: OSError, path: Path, size: int) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{path} needs {size:,} bytes that the disk does not have; free some space and run again")
    return error
