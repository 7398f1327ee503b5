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
from hubquant.formats.gguf.families import ROPE_FREQS, family_of_model
from hubquant.formats.gguf.imatrix import ImatrixInfo
from hubquant.formats.gguf.metadata import Provenance, Value, general, hyperparameters, positive, rope_factors
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
        self._heads = positive(config, "num_attention_heads")
        self._heads_kv = positive(config, "num_key_value_heads", self._heads)
        n_layer = positive(config, "num_hidden_layers")
        tied = bool(config.get("tie_word_embeddings"))
        named = {hf: self._family.gguf_name(hf) for hf in tensors if not (tied and hf == "lm_head.weight")}
        self._name = {hf: name for hf, name in named.items() if name is not None}
        shapes = {name: tensors[hf] for hf, name in self._name.items()}
        self._family.check_complete(shapes, n_layer)
        n_vocab = shapes["token_embd.weight"][0]
        if n_vocab != positive(config, "vocab_size"):
            raise BadModel(f"the embedding has {n_vocab} rows, config.json says vocab_size {config['vocab_size']}")
        factors = rope_factors(config)
        if factors is not None:
            shapes[ROPE_FREQS] = tuple(factors.shape)
        dimensions = Dimensions(self._family.architecture, n_layer, self._heads, self._heads_kv)
        self._base = mixture(variant.mixture).base
        self._types = tensor_types(variant.mixture, shapes, dimensions, imatrix is not None)
        self._shapes = shapes
        parameters = sum(prod(shape) for shape in shapes.values())
        entries = sum(len(shape) > 1 and name.startswith("blk.") for name, shape in shapes.items())
        values: dict[str, Value] = {
            **general(provenance, mixture(variant.mixture), imatrix, parameters, entries),
            **hyperparameters(config, self._family, n_vocab),
            **tokenizer_values(checkpoint_folder, config, n_vocab),
        }
        self._missing = set(shapes)
        self._reserve(values)
        if factors is not None:
            self._write(ROPE_FREQS, encode(factors[None], "F32"))

    def gguf_name(self, hf_name: str) -> str | None:
        """The tensor's name in the file; None if it is not stored: a tied lm_head, a buffer that llama.cpp computes."""
        return self._name.get(hf_name)

    def type_of(self, hf_name: str) -> str | None:
        """The ggml type chosen for a tensor, None if it is not stored."""
        name = self._name.get(hf_name)
        return None if name is None else self._types[name]

    def add(
        self,
        hf_name: str,
        weight: Tensor,
        importance: Tensor | None = None,
        measure: Callable[[Tensor, Tensor], float] | None = None,
    ) -> TensorRecord:
        """Encodes and writes one tensor that type_of knows.

        `importance` [in]: mean squared input of each column. `measure(weight, stored)`, given the float32 tensors before and
        after, both in Hugging Face order, returns the record's output_error.
        """
        name = self._name[hf_name]
        if tuple(weight.shape) != self._shapes[name]:
            raise BadModel(f"tensor {hf_name} has shape {tuple(weight.shape)}, announced was {self._shapes[name]}")
        rows = self._family.stored_rows(name, self._shapes[name], self._heads, self._heads_kv)
        rows = None if rows is None else rows.to(weight.device)
        kind = self._types[name]
        ordered = weight if rows is None else weight[rows]
        try:
            data = encode(ordered if ordered.ndim > 1 else ordered[None], kind, importance)
        except BadModel as error:
            raise BadModel(f"tensor {hf_name}: {error}") from None
        self._write(name, data)
        output_error = None
        if measure is not None:
            stored = decode(data, kind).view_as(weight)
            stored = stored if rows is None else torch.empty_like(stored).index_copy_(0, rows, stored)
            output_error = measure(weight.float(), stored)
        return TensorRecord(name=hf_name, type=kind, output_error=output_error, note=self._note(name))

    def finish(self) -> None:
        """Makes the file durable and gives it its name. Raises BadModel if a tensor was never added."""
        if self._missing:
            hf_names = sorted(hf for hf, name in self._name.items() if name in self._missing)
            raise BadModel(f"{self.path.name}: {len(hf_names)} tensors were never written, the first is {hf_names[0]}")
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

    def _note(self, name: str) -> str:
        shape = self._shapes[name]
        if len(shape) > 1 and shape[-1] % GGML_TYPES[self._base].block_size:
            return f"rows of {shape[-1]} are no whole blocks of {self._base}: {self._types[name]}, as llama.cpp does"
        return ""

    def _reserve(self, values: Mapping[str, Value]) -> None:
        """Writes the header and takes the disk space of everything that will follow."""
        writer = gguf.GGUFWriter(None, self._family.architecture)
        for key, value in values.items():
            _add_value(writer, key, value)
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

    def _write(self, name: str, data: Tensor) -> None:
        self._missing.remove(name)
        try:
            self._file.seek(self._offset[name])
            self._file.write(data.cpu().contiguous().numpy().data)
        except OSError as error:
            raise _disk_error(error, self._part, data.numel()) from None


def _add_value(writer: Any, key: str, value: Value) -> None:
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
