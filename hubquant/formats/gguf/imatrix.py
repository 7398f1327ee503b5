"""llama.cpp's importance matrix as a GGUF file: per matrix the sum of squared inputs of each column, and how many tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from hubquant.calibrate.statistics import InputStatistics
from hubquant.errors import BadModel
from hubquant.formats.gguf.header import GgufHeader

IMATRIX_FILE = "imatrix.gguf"


@dataclass(frozen=True)
class ImatrixInfo:
    """What a quantized file says of the importance matrix it was made with. `file` is a name, never a path."""

    file: str
    dataset: str
    chunks: int


@dataclass
class Imatrix:
    """`in_sum2`: GGUF tensor name → Σ x² [matrices, in], float32, of each matrix of it over `counts` tokens, taken in `chunks`
    windows of `chunk_size`. Stacks of experts have many matrices, other tensors one."""

    dataset: str
    chunks: int
    chunk_size: int
    in_sum2: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)

    def add(self, gguf_name: str, in_sum2: Tensor, count: int, matrices: range = range(1), of: int = 1) -> None:
        """Σ x² [in] over `count` tokens, what some `matrices` read, `of` all in the tensor."""
        if gguf_name not in self.in_sum2:
            self.in_sum2[gguf_name], self.counts[gguf_name] = torch.zeros(of, in_sum2.numel()), [0] * of
        for matrix in matrices:
            self.in_sum2[gguf_name][matrix] = in_sum2.detach().float().cpu()
            self.counts[gguf_name][matrix] = count

    def add_observed(self, gguf_name: str, statistics: InputStatistics, matrices: range, of: int) -> None:
        """As `add`, of what the pass saw of an input: every token as much as the other, as llama.cpp counts them."""
        self.add(gguf_name, statistics.squares, statistics.n_tokens, matrices, of)

    def importance(self, gguf_name: str) -> Tensor:
        """Mean of x² [in], or [matrices, in] of a stack; 1 throughout for a matrix that no token reached, as in llama.cpp."""
        counts = torch.tensor(self.counts[gguf_name])[:, None]
        mean = torch.where(counts > 0, self.in_sum2[gguf_name] / counts.clamp_min(1), 1.0)
        return mean if len(mean) > 1 else mean[0]

    def state(self) -> dict[str, Any]:
        """What `restore` takes back in another process."""
        return {"in_sum2": self.in_sum2, "counts": self.counts}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.in_sum2, self.counts = dict(state["in_sum2"]), dict(state["counts"])

    def write(self, path: Path) -> None:
        """As llama-imatrix writes it: sorted by name, `.in_sum2` [in] and `.counts` [1]; of a stack a row for each matrix."""
        writer = gguf.GGUFWriter(None, arch="")
        writer.kv_data[0].pop("general.architecture", None)  # an importance matrix has no architecture
        writer.add_string("general.type", "imatrix")
        writer.add_array("imatrix.datasets", [self.dataset])
        writer.add_uint32("imatrix.chunk_count", self.chunks)
        writer.add_uint32("imatrix.chunk_size", self.chunk_size)
        for name in sorted(self.in_sum2):
            sums, counts = self.in_sum2[name].numpy(), np.array(self.counts[name], dtype=np.float32)
            writer.add_tensor(f"{name}.in_sum2", sums if len(sums) > 1 else sums[0])
            writer.add_tensor(f"{name}.counts", counts[:, None] if len(counts) > 1 else counts)
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
            rows = sums.flatten(0, -2) if sums.ndim > 1 else sums[None]
            if counts.numel() != len(rows) or not (counts.isfinite() & (counts >= 0)).all() or not counts.any():
                shown = counts.flatten()[:8].tolist()
                raise BadModel(f"{path.name}: {matrix}.counts is {shown}, expected {len(rows)} numbers of tokens, not all 0")
            for index, (row, count) in enumerate(zip(rows, counts.flatten().tolist(), strict=True)):
                found.add(matrix, row, int(count), range(index, index + 1), len(rows))
        return found
