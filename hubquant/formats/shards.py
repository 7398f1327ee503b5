"""safetensors written as a stream: tensors go to disk as they come, the header is put in front at the end."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip
_TORCH = {name: dtype for dtype, name in NAMES.items()}
MAX_SHARD_BYTES = 5 * 10**9
INDEX = "model.safetensors.index.json"
LEFTOVERS = ("*.part", "model.safetensors", "model-*-of-*.safetensors", INDEX)


class ShardWriter:
    """Writes `model.safetensors`, or numbered shards and their index past `max_shard_bytes`, into `folder`.

    Nothing under a final name exists before `finish`; only one tensor is in memory at a time. Weights that an earlier run
    left in the folder are removed with the first tensor: a reader would follow their index.
    """

    def __init__(self, folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        self.folder, self.max_shard_bytes = folder, max_shard_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._headers: list[dict[str, dict[str, object]]] = [{}]
        self._sizes = [0]

    def state(self) -> dict[str, Any]:
        """For `restore`; returns when the disk has every tensor so far."""
        for number in range(len(self._sizes)):
            with suppress(FileNotFoundError):
                sync(self._spool(number))
        return {"headers": self._headers, "sizes": self._sizes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after the tensors of that state; what came after them is overwritten."""
        self._headers, self._sizes = state["headers"], state["sizes"]

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor. Opens the next shard when this one would grow past the limit."""
        if not self._headers[0]:
            self._clear()
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        if self._sizes[-1] and self._sizes[-1] + raw.nbytes > self.max_shard_bytes:
            self._headers.append({})
            self._sizes.append(0)
        start = self._sizes[-1]
        spool = self._spool(len(self._sizes) - 1)
        if not start or spool.exists():  # else a killed process put the shard in place: it is complete, and the same
            with spool.open("r+b" if start else "wb") as file:
                file.seek(start)
                raw.tofile(file)
        self._sizes[-1] += raw.nbytes
        self._headers[-1][name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, self._sizes[-1]],
        }

    @property
    def size_bytes(self) -> int:
        """Of the tensors that were added."""
        return sum(self._sizes)

    def read(self, name: str) -> Tensor:
        """A tensor that was added, before `finish`."""
        shard = next(i for i, header in enumerate(self._headers) if name in header)
        entry: Any = self._headers[shard][name]
        start, end = entry["data_offsets"]
        with self._spool(shard).open("rb") as file:
            file.seek(start)
            raw = bytearray(file.read(end - start))
        return torch.frombuffer(raw, dtype=_TORCH[entry["dtype"]]).view(entry["shape"])

    def finish(self) -> list[str]:
        """Put the files in place and return their names. Repeated after a kill, it goes on with those that are not there yet."""
        if not self._headers[0]:
            self._clear()
        count = len(self._headers)
        names = ["model.safetensors"] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        for i, name in enumerate(names):
            if self._sizes[i] == 0 or self._spool(i).exists():
                self._assemble(i, self.folder / name)
        if count > 1:
            weight_map = {tensor: names[i] for i, header in enumerate(self._headers) for tensor in header}
            index = {"metadata": {"total_size": sum(self._sizes)}, "weight_map": dict(sorted(weight_map.items()))}
            write_json(self.folder / INDEX, index)
            names.append(INDEX)
        return names

    def discard(self) -> None:
        """Remove what was added so far."""
        for leftover in self.folder.glob("*.part"):
            leftover.unlink()

    def _clear(self) -> None:
        for pattern in LEFTOVERS:
            for leftover in self.folder.glob(pattern):
                leftover.unlink()

    def _spool(self, shard: int) -> Path:
        return self.folder / f"shard-{shard}.data.part"

    def _assemble(self, shard: int, path: Path) -> None:
        header = json.dumps({"__metadata__": {"format": "pt"}, **self._headers[shard]}, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        partial = path.with_name(path.name + ".part")
        self._spool(shard).touch()  # no tensor at all: an empty file is valid too
        with partial.open("wb") as target:
            target.write(len(header).to_bytes(8, "little") + header)
            with self._spool(shard).open("rb") as data:
                shutil.copyfileobj(data, target, 1 << 22)
            target.truncate(8 + len(header) + self._sizes[shard])  # a killed run may have written more
            target.flush()
            os.fsync(target.fileno())
        partial.replace(path)
        self._spool(shard).unlink()


def overwrite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Other values of those of the tensors that the file holds, which are of the same shape and dtype."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name in header.keys() & tensors.keys():
            file.seek(8 + length + header[name]["data_offsets"][0])
            file.write(tensors[name].contiguous().view(torch.uint8).numpy().data)


def sync(path: Path) -> None:
    """Returns when the disk has it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: object) -> None:
    """Pretty JSON under a temporary name, then put in place."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def copy_file(source: Path, path: Path) -> None:
    """A copy under a temporary name, then put in place."""
    partial = path.with_name(path.name + ".part")
    shutil.copyfile(source, partial)
    partial.replace(path)
