"""Reading the structure of a GGUF file that may be damaged or hostile: every count, length, type and offset is checked
before it is used, so that memory stays proportional to the file and every failure is one BadModel."""

import math
import mmap
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.quantize.ggml import GGML_TYPES, GgmlType, decode

# The bounds of huggingface.js' reader.
MAX_VALUES = 100_000
MAX_TENSORS = 10_000_000
MAX_DIMENSIONS = 8
MAX_STRING_BYTES = 10_000_000
MAX_DIMENSION = 1 << 32
MAX_QUOTED = 80
MAX_SHARDS = 10_000

_SHARD = re.compile(r".*?-(\d{5})-of-(\d{5})\.gguf")

DEFAULT_ALIGNMENT = 32

_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_TYPE_OF_VALUE: dict[int, GgmlType] = {kind.value: kind for kind in GGML_TYPES.values()}


@dataclass(frozen=True)
class StoredTensor:
    """`shape` as torch has it (rows first); `offset` from the start of its file, in bytes; `shard`: which file, from 0."""

    shape: tuple[int, ...]
    kind: GgmlType
    offset: int
    size_bytes: int
    shard: int = 0


@dataclass(frozen=True)
class GgufHeader:
    """The key-value part of a file and where its tensors are. The files stay mapped as long as this lives.

    `files`, `data`: of each shard; `kinds`: how each value is stored, gguf.GGUFValueType and for an array that of its items.
    """

    name: str
    values: dict[str, Any]
    kinds: dict[str, tuple[int, int | None]]
    tensors: dict[str, StoredTensor]
    data: tuple[mmap.mmap, ...]
    files: tuple[Path, ...]

    @classmethod
    def read(cls, path: Path) -> "GgufHeader":
        """The file, and if it is the first of several shards all of them. Raises BadModel naming the file and what is wrong."""
        header = cls._read_one(path)
        count = header.values.get("split.count", 1)
        if count in (0, 1):
            return header
        named = _SHARD.fullmatch(path.name)
        if not isinstance(count, int) or not 1 < count <= MAX_SHARDS or named is None or int(named[2]) != count:
            raise BadModel(f"{path.name} is one of {count!r} shards, but is not named …-00001-of-0000N.gguf")
        if header.values.get("split.no") != 0 or int(named[1]) != 1:
            raise BadModel(f"{path.name} is not the first shard of {count}; name that one")
        tensors, data, files = dict(header.tensors), list(header.data), list(header.files)
        for number in range(1, count):
            shard = cls._read_one(path.with_name(f"{path.name[: named.start(1)]}{number + 1:05d}-of-{count:05d}.gguf"))
            if shard.values.get("split.no") != number or tensors.keys() & shard.tensors.keys():
                raise BadModel(f"{shard.name} does not continue {path.name}")
            tensors |= {name: replace(tensor, shard=number) for name, tensor in shard.tensors.items()}
            data += shard.data
            files += shard.files
        if len(tensors) != header.values.get("split.tensors.count", len(tensors)):
            raise BadModel(f"{path.name}: its shards hold {len(tensors)} tensors, not {header.values['split.tensors.count']}")
        return replace(header, tensors=tensors, data=tuple(data), files=tuple(files))

    @classmethod
    def _read_one(cls, path: Path) -> "GgufHeader":
        try:
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise BadModel(f"{path.name} cannot be read as a GGUF file: {error}") from None
        try:
            values, kinds, tensors = _parse(data)
        except BadModel as error:
            data.close()
            raise BadModel(f"{path.name} is not a sound GGUF file: {error}") from None
        return cls(path.name, values, kinds, tensors, (data,), (path,))

    def positive(self, key: str) -> int:
        """A positive whole number of the key-value part. Raises BadModel if there is none."""
        value = self.values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise BadModel(f"{self.name}: {key} is {value!r}, expected a positive whole number")
        return value

    def release(self) -> None:
        """Give back the pages that were read: those of a mapped file count as this process's memory."""
        for data in self.data:
            data.madvise(mmap.MADV_DONTNEED)

    def tensor(self, name: str, start: int = 0, count: int | None = None, device: torch.device | None = None) -> Tensor:
        """The tensor, decoded on `device`: float32, of its shape, or `count` of its first dimension from `start` on.

        Raises BadModel if the file has none of that name.
        """
        if name not in self.tensors:
            raise BadModel(f"{self.name}: no tensor {_quoted(name)}")
        stored = self.tensors[name]
        stop = stored.shape[0] if count is None else start + count
        rows = self._rows(stored)
        if len(stored.shape) > 1:
            each = math.prod(stored.shape[1:-1])
            rows = rows[start * each : stop * each]
        values = decode(_copied(rows).to(device), stored.kind.name)
        return values.reshape(-1, *stored.shape[1:]) if len(stored.shape) > 1 else values[0, start:stop]

    def blocks(self, name: str) -> Tensor:
        """The bytes of a tensor that is there, [rows, row_bytes]."""
        return _copied(self._rows(self.tensors[name]))

    def _rows(self, stored: StoredTensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        row_bytes = stored.shape[-1] // stored.kind.block_size * stored.kind.type_size
        return np.frombuffer(self.data[stored.shard], np.uint8, stored.size_bytes, stored.offset).reshape(-1, row_bytes)


def _copied(rows: "np.ndarray[Any, np.dtype[np.uint8]]") -> Tensor:
    """torch takes no read-only memory."""
    return torch.from_numpy(rows.copy())


def _quoted(text: str) -> str:
    """For an error message: a name of ten million characters is cut."""
    return repr(text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "…")


def _parse(data: mmap.mmap) -> tuple[dict[str, Any], dict[str, tuple[int, int | None]], dict[str, StoredTensor]]:
    at = _Cursor(data)
    if at.take(4) != b"GGUF":
        raise BadModel("it does not begin with GGUF")
    version = at.number(4)
    if version not in (2, 3):
        raise BadModel(f"version {version}; only 2 and 3, little-endian, can be read")
    n_tensors = at.count("tensors", at.number(10), MAX_TENSORS, 24)
    n_values = at.count("keys", at.number(10), MAX_VALUES, 13)
    values: dict[str, Any] = {}
    kinds: dict[str, tuple[int, int | None]] = {}
    for _ in range(n_values):
        key = at.string()
        if key in values:
            raise BadModel(f"key {_quoted(key)} occurs twice")
        values[key], kinds[key] = at.value(key)
    infos: dict[str, tuple[tuple[int, ...], GgmlType, int]] = {}
    for _ in range(n_tensors):
        name = at.string()
        if name in infos:
            raise BadModel(f"tensor {_quoted(name)} occurs twice")
        infos[name] = at.tensor_info(name)
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise BadModel(f"general.alignment is {alignment!r}, expected a power of two")
    start = -(-at.position // alignment) * alignment
    return values, kinds, _placed(infos, start, alignment, len(data))


def _placed(
    infos: dict[str, tuple[tuple[int, ...], GgmlType, int]], start: int, alignment: int, file_size: int
) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for name, (shape, kind, offset) in infos.items():
        size = math.prod(shape) // kind.block_size * kind.type_size
        if offset % alignment:
            raise BadModel(f"tensor {_quoted(name)} begins at offset {offset}, not a multiple of {alignment}")
        end = start + offset + size
        if end > file_size:
            raise BadModel(f"tensor {_quoted(name)} ends at byte {end}, the file at {file_size}; is it truncated?")
        tensors[name] = StoredTensor(shape, kind, start + offset, size)
    end, before = 0, ""
    for name, stored in sorted(tensors.items(), key=lambda item: item[1].offset):
        if stored.offset < end:
            raise BadModel(f"tensors {_quoted(before)} and {_quoted(name)} overlap")
        end, before = stored.offset + stored.size_bytes, name
    return tensors


class _Cursor:
    """A position in the file. Every read is checked against its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, n: int) -> bytes:
        if n > self.left:
            raise BadModel(f"it ends at byte {len(self.data)}, {n - self.left} bytes too early")
        self.position += n
        return self.data[self.position - n : self.position]

    def number(self, kind: int) -> Any:
        form = _SCALARS[kind]
        return form.unpack(self.take(form.size))[0]

    def count(self, what: str, n: int, limit: int, least_bytes: int) -> int:
        """n, if it is within the limit and n things of at least that size can follow."""
        if n > limit or n * least_bytes > self.left:
            raise BadModel(f"it claims {n} {what}, more than {limit} or than its size allows")
        return n

    def string(self) -> str:
        n = self.count("bytes of text", self.number(10), MAX_STRING_BYTES, 1)
        try:
            return self.take(n).decode()
        except UnicodeDecodeError:
            raise BadModel(f"the text at byte {self.position - n} is not UTF-8") from None

    def value(self, key: str) -> tuple[Any, tuple[int, int | None]]:
        """The value, and how it is stored: its type, and of an array the type of its items."""
        kind = self.number(4)
        if kind == _STRING:
            return self.string(), (kind, None)
        if kind in _SCALARS:
            return self.number(kind), (kind, None)
        if kind != _ARRAY:
            raise BadModel(f"key {_quoted(key)} is of unknown type {kind}")
        kind, n = self.number(4), self.number(10)
        if kind == _STRING:
            self.count(f"texts in {_quoted(key)}", n, MAX_TENSORS, 8)
            return [self.string() for _ in range(n)], (_ARRAY, kind)
        if kind not in _SCALARS:
            raise BadModel(f"key {_quoted(key)} is an array of unknown type {kind}")
        form = _SCALARS[kind]
        self.count(f"numbers in {_quoted(key)}", n, len(self.data), form.size)
        return [item[0] for item in form.iter_unpack(self.take(n * form.size))], (_ARRAY, kind)

    def tensor_info(self, name: str) -> tuple[tuple[int, ...], GgmlType, int]:
        n = self.number(4)
        if not 1 <= n <= MAX_DIMENSIONS:
            raise BadModel(f"tensor {_quoted(name)} has {n} dimensions")
        shape = tuple(self.number(10) for _ in range(n))[::-1]
        kind_value, offset = self.number(4), self.number(10)
        if kind_value not in _TYPE_OF_VALUE:
            raise BadModel(f"tensor {_quoted(name)} is of ggml type {kind_value}; known: {', '.join(GGML_TYPES)}")
        kind = _TYPE_OF_VALUE[kind_value]
        if not all(0 < size <= MAX_DIMENSION for size in shape) or shape[-1] % kind.block_size:
            raise BadModel(f"tensor {_quoted(name)} has shape {shape}, which {kind.name} cannot have")
        return shape, kind, offset
