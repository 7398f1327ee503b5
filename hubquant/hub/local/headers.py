"""The heads of weight files, as far as a repo's page needs them: counts and names, no tensors."""

import json
import struct
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

SAFETENSORS_LIMIT_BYTES = 100 * 10**6
GGUF_MAX_ITEMS = 10_000_000
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_SHOWN = ("context_length", "chat_template")


def safetensors_parameters(path: Path) -> dict[str, int]:
    """Number of values per dtype in one file; raises ValueError if its header is damaged.

    Layout: https://huggingface.co/docs/safetensors/index#format
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > SAFETENSORS_LIMIT_BYTES:
            raise ValueError(f"not a safetensors header: {length} bytes long")
        header = json.loads(file.read(length))
    counts: Counter[str] = Counter()
    try:
        for name, tensor in header.items():
            if name != "__metadata__":
                counts[str(tensor["dtype"])] += prod(int(n) for n in tensor["shape"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a safetensors header: {error!r}") from None
    return dict(counts)


def gguf_summary(path: Path) -> dict[str, Any]:
    """total (values), architecture, context_length and chat_template of a GGUF file; raises ValueError if its header is damaged.

    Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF" or _scalar(file, "<I") not in (2, 3):
            raise ValueError("not a GGUF file of version 2 or 3")
        tensor_count, pair_count = _scalar(file, "<Q"), _scalar(file, "<Q")
        if max(tensor_count, pair_count) > GGUF_MAX_ITEMS:
            raise ValueError("not a GGUF header: impossible counts")
        summary: dict[str, Any] = {"total": 0}
        for _ in range(pair_count):
            key = _string(file)
            value = _value(file, _scalar(file, "<I"))
            name = key.rpartition(".")[2]
            if key == "general.architecture":
                summary["architecture"] = value
            elif name in _SHOWN:
                summary[name] = value
        for _ in range(tensor_count):
            _string(file)
            dimensions = _scalar(file, "<I")
            if dimensions > 8:
                raise ValueError("not a GGUF header: impossible dimensions")
            summary["total"] += prod(_scalar(file, "<Q") for _ in range(dimensions))
            file.seek(12, 1)  # type and offset
    return summary


def _scalar(file: BinaryIO, layout: str) -> Any:
    size = struct.calcsize(layout)
    raw = file.read(size)
    if len(raw) < size:
        raise ValueError("a GGUF header that ends too early")
    return struct.unpack(layout, raw)[0]


def _string(file: BinaryIO) -> str:
    length = _scalar(file, "<Q")
    if length > GGUF_MAX_ITEMS:
        raise ValueError("not a GGUF header: impossible string")
    return file.read(length).decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> Any:
    """A scalar or string; arrays are passed over."""
    if kind in _SCALARS:
        return _scalar(file, _SCALARS[kind])
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        raise ValueError(f"not a GGUF header: value type {kind}")
    inner, count = _scalar(file, "<I"), _scalar(file, "<Q")
    if count > GGUF_MAX_ITEMS:
        raise ValueError("not a GGUF header: impossible array")
    if inner in _SCALARS:
        file.seek(count * struct.calcsize(_SCALARS[inner]), 1)
    else:
        for _ in range(count):
            _value(file, inner)
    return None
