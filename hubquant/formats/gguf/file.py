"""The bytes of a GGUF model: one file, or shards past a limit. Every tensor's place is taken before the first one arrives, so
that tensors can come in any order and in parts."""

import errno
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from torch import Tensor

from hubquant.errors import BadModel, DiskFull
from hubquant.formats.gguf.metadata import Typed, Value
from hubquant.quantize.ggml import GGML_TYPES, row_bytes
from hubquant.recipe import MAX_FILE_BYTES

COPIED_BYTES = 1 << 26  # at a time
UINT16, INT32 = gguf.GGUFValueType.UINT16, gguf.GGUFValueType.INT32


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to come: its ggml type, and its shape as torch has it (rows first)."""

    kind: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Of one entry of the first dimension."""
        return row_bytes(self.kind, self.shape[-1]) * prod(self.shape[1:-1]) if len(self.shape) > 1 else row_bytes(self.kind, 1)

    @property
    def size_bytes(self) -> int:
        return self.shape[0] * self.row_bytes


class GgufFile:
    """`path` under its name only after `finish`: until then .part files stand beside it. Those that an earlier process left are
    taken as they are; `restore` if tensors in them count.

    With tensors of more than `max_bytes`, NAME.gguf becomes NAME/NAME-00001-of-0000N.gguf and so on, as llama.cpp's gguf-split
    names them. Raises DiskFull if it does not fit on the disk, BadModel for a text that is no Unicode.
    """

    def __init__(
        self,
        path: Path,
        architecture: str,
        values: Mapping[str, Value | Typed],
        tensors: Mapping[str, TensorPlan],
        max_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        self._tensors = tensors
        self._place: dict[str, tuple[int, int]] = {}
        shards = _shards(tensors, max_bytes)
        self.paths = _paths(path, len(shards))
        self._parts = [p.with_name(p.name + ".part") for p in self.paths]
        self._files: list[BinaryIO] = []
        try:
            for number, names in enumerate(shards):
                split = _split(number, len(shards), len(tensors)) if len(shards) > 1 else {}
                own = {**values, **split} if number == 0 else split
                self._files.append(self._reserve(number, architecture, own, names))
        except BaseException:
            self.discard()
            raise

    def write(self, name: str, start: int, data: Tensor) -> None:
        """Encoded rows of a tensor, uint8, from entry `start` of its first dimension on."""
        number, offset = self._place[name]
        with _disk(self._parts[number], data.numel()):
            self._files[number].seek(offset + start * self._tensors[name].row_bytes)
            self._files[number].write(data.cpu().contiguous().numpy().data)

    def sync(self) -> None:
        """Returns when the disk has what was written."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())

    def restore(self) -> None:
        """Go on with the tensors that another process wrote, even if it was killed while it gave the files their names."""
        for number, (part, path) in enumerate(zip(self._parts, self.paths, strict=True)):
            if path.exists():
                self._files[number].close()
                path.replace(part)
                self._files[number] = part.open("r+b")

    @property
    def size_bytes(self) -> int:
        """Of all shards, reserved but not yet finished."""
        return sum(part.stat().st_size for part in self._parts)

    def copy(self, name: str, other: "GgufFile") -> None:
        """A tensor as it stands in another file, whose plan for it is the same."""
        number, offset = self._place[name]
        their_number, their_offset = other._place[name]
        size = self._tensors[name].size_bytes
        for start in range(0, size, COPIED_BYTES):
            with _disk(self._parts[number], size):
                other._files[their_number].seek(their_offset + start)
                self._files[number].seek(offset + start)
                self._files[number].write(other._files[their_number].read(min(COPIED_BYTES, size - start)))

    def finish(self) -> None:
        """Makes the files durable and gives them their names."""
        self.sync()
        for file in self._files:
            file.close()
        for part, path in zip(self._parts, self.paths, strict=True):
            part.replace(path)

    def discard(self) -> None:
        """Removes what was written so far; nothing after `finish`."""
        for file in self._files:
            file.close()
        for part in self._parts:
            part.unlink(missing_ok=True)

    def _reserve(self, number: int, architecture: str, values: Mapping[str, Value | Typed], names: list[str]) -> BinaryIO:
        """Writes the header and takes the disk space of everything that will follow."""
        part = self._parts[number]
        part.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(None, architecture)
        if number:
            writer.kv_data[0].pop("general.architecture")
        for key, value in values.items():
            add_value(writer, key, value)
        end = 0
        for name in names:
            plan = self._tensors[name]
            kind = gguf.GGMLQuantizationType(GGML_TYPES[plan.kind].value)
            writer.add_tensor_info(name, plan.shape, np.dtype(np.float32), plan.size_bytes, kind)
            self._place[name] = (number, end)
            end = writer.ggml_pad(end + plan.size_bytes, writer.data_alignment)
        header = part.with_name(f"{part.name}.header")
        try:
            with _disk(part, end):
                writer.write_header_to_file(header)
                writer.write_kv_data_to_file()
                writer.write_ti_data_to_file()
                writer.close()
                return self._opened(part, header.read_bytes(), names, end, writer.data_alignment)
        except UnicodeEncodeError as error:
            raise BadModel(f"the tokenizer, chat template or card holds text that is not Unicode: {error}") from None
        finally:
            writer.close()
            header.unlink(missing_ok=True)

    def _opened(self, part: Path, header: bytes, names: list[str], end: int, alignment: int) -> BinaryIO:
        """The file with its header, and room for tensors up to `end` after it."""
        start = -(-len(header) // alignment) * alignment
        for name in names:
            self._place[name] = (self._place[name][0], start + self._place[name][1])
        file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            file.write(header)
            file.truncate(start + end)
            if sys.platform == "linux":
                os.posix_fallocate(file.fileno(), 0, start + end)
        except BaseException:
            file.close()
            raise
        return file


def add_value(writer: Any, key: str, value: Value | Typed) -> None:
    """One key of the key-value part; general.architecture is the writer's own."""
    if isinstance(value, Typed):
        if key != "general.architecture":
            writer.add_key_value(key, value.value, value.kind, value.item_kind)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _shards(tensors: Mapping[str, TensorPlan], max_bytes: int) -> list[list[str]]:
    """Names in order, in as many lists as the limit asks for; a tensor beyond the limit is alone."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, plan in tensors.items():
        if shards[-1] and size + plan.size_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += plan.size_bytes
    return shards


def _paths(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    return [path.with_suffix("") / f"{path.stem}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]


def _split(number: int, count: int, n_tensors: int) -> dict[str, Value | Typed]:
    return {
        "split.no": Typed(number, UINT16),
        "split.count": Typed(count, UINT16),
        "split.tensors.count": Typed(n_tensors, INT32),
    }


@contextmanager
def _disk(path: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{path} needs {size:,} bytes that the disk does not have; free some space and run again") from None
        raise
