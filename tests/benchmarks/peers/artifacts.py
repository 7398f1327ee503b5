"""What a tool left behind: opened as dense weights, and its bytes counted."""

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

from hubquant.formats.gguf.reader import GgufSource
from hubquant.formats.packedsource import PackedSource
from hubquant.model.checkpoint import TensorSource
from hubquant.model.decoder import Decoder
from peers.compressed import CompressedSource


def source(path: Path) -> TensorSource:
    """A GGUF file, or a folder of GPTQ, AWQ or compressed-tensors, as dense weights. Raises BadModel if it is none."""
    if path.suffix == ".gguf":
        return GgufSource(path)
    config = json.loads((path / "config.json").read_text())
    method = (config.get("quantization_config") or {}).get("quant_method")
    return CompressedSource(path) if method == "compressed-tensors" else PackedSource(path)


def size_bytes(path: Path) -> int:
    """Bytes of the weight files."""
    return sum(file.stat().st_size for file in _weight_files(path))


def matrices_bits(path: Path, decoder: Decoder) -> float:
    """Bits per weight of the matrices of the decoder layers, scales, zeros and indices included: embeddings, which some tools keep
    in 32 bit and some quantize, left out."""
    matrices = {n: shape for n, shape in decoder.shapes().items() if n.startswith(decoder.layers_name + ".") and len(shape) > 1}
    if path.suffix == ".gguf":
        stored = GgufSource(path).header.tensors
        n_bytes = sum(t.size_bytes for name, t in stored.items() if name.startswith("blk.") and len(t.shape) > 1)
    else:
        stems = {name.removesuffix(".weight") for name in matrices}
        n_bytes = sum(size for name, size in _tensor_sizes(path).items() if _stem(name) in stems and not name.endswith(".bias"))
    return 8 * n_bytes / sum(prod(shape) for shape in matrices.values())


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _weight_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.safetensors"))


def _tensor_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every tensor of the folder's safetensors files by name."""
    sizes = {}
    for path in _weight_files(folder):
        with path.open("rb") as file:
            header: dict[str, Any] = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        sizes |= {name: t["data_offsets"][1] - t["data_offsets"][0] for name, t in header.items() if name != "__metadata__"}
    return sizes
