"""GGUF variants in the pass: layer by layer into the file, with the importance matrix that all of them share."""

import json
import time
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from hubquant.artifact import Artifact, TensorRecord, file_sha256
from hubquant.calibrate.statistics import InputStatistics
from hubquant.formats.gguf.imatrix import IMATRIX_FILE, Imatrix, ImatrixInfo
from hubquant.formats.gguf.metadata import Provenance
from hubquant.formats.gguf.mixtures import Chosen
from hubquant.formats.gguf.writer import GgufWriter
from hubquant.formats.writer import State
from hubquant.model.layer import Layer
from hubquant.quantize.ggml import NEEDS_IMPORTANCE
from hubquant.recipe import MAX_FILE_BYTES, Variant


class GgufArtifactWriter:
    """Writes FOLDER/NAME-MIXTURE.gguf, or its shards, and FOLDER/imatrix.gguf. Variants of one pass share the Imatrix object."""

    packs_head = False

    def __init__(
        self,
        variant: Variant,
        folder: Path,
        base: Path,
        shapes: Mapping[str, tuple[int, ...]],
        provenance: Provenance,
        imatrix: Imatrix,
        max_bytes: int = MAX_FILE_BYTES,
        chosen: Chosen | None = None,
    ) -> None:
        self.variant, self.folder, self.imatrix = variant, folder, imatrix
        folder.mkdir(parents=True, exist_ok=True)
        self.file = f"{provenance.name}-{variant.mixture}.gguf"
        self.n_parameters = sum(prod(s) for s in shapes.values())
        info = ImatrixInfo(file=IMATRIX_FILE, dataset=imatrix.dataset, chunks=imatrix.chunks)
        config = json.loads((base / "config.json").read_text())
        self.writer = GgufWriter(
            folder / self.file,
            base,
            config,
            variant,
            tensors=shapes,
            provenance=provenance,
            imatrix=info,
            max_bytes=max_bytes,
            chosen=chosen,
        )
        self.records: list[TensorRecord] = []
        self.seconds = 0.0

    def add_outside(self, name: str, tensor: Tensor) -> None:
        if self.writer.type_of(name) is not None:
            self.records.append(self.writer.add(name, tensor))

    def add_layer(self, layer: Layer) -> None:
        started = time.monotonic()
        for name, weight in layer.tensors.items():
            full_name = layer.prefix + name
            if self.writer.type_of(full_name) is None:
                continue
            statistics = layer.statistics_of(name)
            if statistics is None:
                self.writer.add(full_name, weight)
                continue
            for name, matrices, of in self.writer.matrices(full_name):
                self.imatrix.add_observed(name, statistics, matrices, of)
            self.records.append(self._add(full_name, weight, statistics))
        self.seconds += time.monotonic() - started

    def _add(self, name: str, weight: Tensor, statistics: InputStatistics) -> TensorRecord:
        """Of a starved input the importance is not used, but by the types that cannot do without one."""
        if not statistics.starved:
            return self.writer.add(name, weight, statistics=statistics)
        kinds = (self.writer.type_of(name) or "").split("+")
        equal = torch.ones_like(statistics.importance) if NEEDS_IMPORTANCE.intersection(kinds) else None
        record = self.writer.add(name, weight, equal)
        note = f"encoded without importance: {statistics.shortage}"
        return record.model_copy(update={"note": "; ".join(filter(None, (record.note, note)))})

    def state(self) -> State:
        missing = self.writer.state()
        return {"missing": missing, "records": self.records, "seconds": self.seconds, "imatrix": self.imatrix.state()}

    def restore(self, state: State) -> None:
        self.writer.restore(state["missing"])
        self.records = [TensorRecord.model_validate(record) for record in state["records"]]
        self.seconds = state["seconds"]
        self.imatrix.restore(state["imatrix"])

    def finish(self) -> Artifact:
        self.writer.finish()
        self.imatrix.write(self.folder / IMATRIX_FILE)
        paths = self.writer.paths
        size = sum(path.stat().st_size for path in paths)
        return Artifact(
            variant=self.variant.name,
            folder=self.variant.folder,
            files={str(p.relative_to(self.folder)): file_sha256(p) for p in (*paths, self.folder / IMATRIX_FILE)},
            size_bytes=size,
            bits_per_weight=8 * size / self.n_parameters,
            tensors=tuple(self.records),
            seconds=self.seconds,
        )

    def discard(self) -> None:
        self.writer.discard()
