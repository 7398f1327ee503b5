"""llama.cpp's importance matrix as a GGUF file: per matrix the sum of squared inputs of each column, and how many tokens."""

from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.formats.gguf.header import GgufHeader


@dataclass(frozen=True)
class ImatrixInfo:
    """What a quantized file says of the importance matrix it was made with. `file` is a name, never a path."""

    file: str
    dataset: str
    chunks: int


@dataclass
class Imatrix:
    """`in_sum2`: GGUF tensor name → Σ x² [in], float32, over `counts` tokens, taken in `chunks` windows of `chunk_size`."""

    dataset: str
    chunks: int
    chunk_size: int
    in_sum2: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, gguf_name: str, in_sum2: Tensor, count: int) -> None:
        """One matrix: Σ x² [in] over `count` tokens."""
        self.in_sum2[gguf_name] = in_sum2.detach().float().cpu()
        self.counts[gguf_name] = count

    def importance(self, gguf_name: str) -> Tensor:
        """Mean of x² [in]."""
        return self.in_sum2[gguf_name] / self.counts[gguf_name]

    def write(self, path: Path) -> None:
        """As llama-imatrix writes it: sorted by name, `.in_sum2` [in] and `.counts` [1]."""
        writer = gguf.GGUFWriter(None, arch="")
        writer.kv_data[0].pop("general.architecture", None)  # an importance matrix has no architecture
        writer.add_string("general.type", "imatrix")
        writer.add_array("imatrix.datasets", [self.dataset])
        writer.add_uint32("imatrix.chunk_count", self.chunks)
        writer.add_uint32("imatrix.chunk_size", self.chunk_size)
        for name in sorted(self.in_sum2):
            writer.add_tensor(f"{name}.in_sum2", self.in_sum2[name].numpy())
            writer.add_tensor(f"{name}.counts", np.array([self.counts[name]], dtype=np.float32))
        part = path.with_name(path.name + ".part")
        writer.write_header_to_file(part)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Imatrix":
        """Raises BadModel if it is not an importance matrix, or an entry of it is malformed."""
        header = GgufHeader.read(path)
        if header.values.get("general.type") != "imatrix":
            raise BadModel(f"{path.name} is a GGUF file, but not an importance matrix (general.type)")
        datasets = header.values.get("imatrix.datasets") or [""]
        found = cls(str(datasets[0]), header.positive("imatrix.chunk_count"), header.positive("imatrix.chunk_size"))
        for name in header.tensors:
            if not name.endswith(".in_sum2"):
                continue
            matrix = name.removesuffix(".in_sum2")
            sums, counts = header.tensor(name), header.tensor(f"{matrix}.counts")
            if counts.numel() != 1 or not counts.item() >= 1:
                raise BadModel(f"{path.name}: {matrix}.counts is {counts.tolist()}, expected one number of tokens")
            found.add(matrix, sums, int(counts.item()))
        return found
