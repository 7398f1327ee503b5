"""GPTQ and AWQ folders, written and read: what differs between the two is in gptq.py and awq.py."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubquant import __version__
from hubquant.artifact import Artifact, TensorRecord
from hubquant.errors import BadModel
from hubquant.formats import awq, gptq
from hubquant.formats.shards import ShardWriter, write_json
from hubquant.formats.writer import file_sha256
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.layer import Layer
from hubquant.model.topology import LayerInput
from hubquant.quantize import awq as awq_solver
from hubquant.quantize import gptq as gptq_solver
from hubquant.quantize.grid import Grid, QuantizedWeight
from hubquant.recipe import Variant

GROUP_SIZES = (128, 64, 32)
STORED = torch.float16
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class PackedFormat:
    """What the writer and the reader need of a format: its packing, its tensors' suffixes, its config block."""

    pack: Callable[[QuantizedWeight], dict[str, Tensor]]
    suffixes: tuple[str, ...]
    config: Callable[[Grid, list[str]], dict[str, Any]]
    dequantize: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Tensor]


FORMATS: dict[str, PackedFormat] = {
    "gptq": PackedFormat(
        gptq.pack,
        gptq.SUFFIXES,
        lambda grid, kept: gptq.quantization_config(grid, kept, gptq_solver.DAMP_RATIO, f"hubquant:{__version__}"),
        gptq.dequantize,
    ),
    "awq": PackedFormat(awq.pack, awq.SUFFIXES, awq.quantization_config, awq.dequantize),
}


class PackedWriter:
    """Writes one GPTQ or AWQ variant into `folder`, layer by layer.

    Linears whose width no group size divides stay in 16 bit; both that and a smaller group are recorded.
    """

    def __init__(
        self, variant: Variant, folder: Path, base: Path, shapes: Mapping[str, tuple[int, ...]], linears: set[str]
    ) -> None:
        """`base`: the model folder; `shapes`: every stored tensor; `linears`: names of the weights of the layers' linears."""
        self.variant, self.folder, self.base = variant, folder, base
        self.format = FORMATS[variant.format]
        widths = [shapes[n][1] for n in linears]
        group_size = next((g for g in (variant.group_size, *GROUP_SIZES) if all(w % g == 0 for w in widths)), variant.group_size)
        self.grid = Grid(variant.bits, group_size, variant.symmetric)
        self.kept = sorted(n for n in linears if not self._fits(shapes[n]))
        self.n_parameters = sum(torch.Size(s).numel() for s in shapes.values())
        self._shards = ShardWriter(folder)
        self._records: list[TensorRecord] = []
        self._seconds = 0.0

    def add_outside(self, name: str, tensor: Tensor) -> None:
        self._shards.add(name, tensor.to(STORED))

    def add_layer(self, layer: Layer) -> None:
        started = time.monotonic()
        scales = {i.name: self._scale(layer, i.name) for i in layer.inputs if i.absorber is not None}
        folded = layer.folded(scales, STORED)
        packed = {n for read in folded.inputs for n in self._quantize(folded, read)}
        for name, weight in folded.tensors.items():
            if name not in packed:
                self._keep(layer.prefix + name, weight, is_linear=folded.input_of(name) is not None)
        self._seconds += time.monotonic() - started

    def _quantize(self, layer: Layer, read: LayerInput) -> list[str]:
        """Solve and store the linears that read one input; their rows are independent, so they are solved as one matrix."""
        names = [f"{n}.weight" for n in read.linears if f"{layer.prefix}{n}.weight" not in self.kept]
        if not names:
            return names
        statistics = layer.statistics[read.name]
        weights = [layer.tensors[n] for n in names]
        solved = gptq_solver.solve(torch.cat(weights), statistics.hessian, self.grid)
        for name, weight, part in zip(names, weights, solved.split([w.shape[0] for w in weights]), strict=True):
            for suffix, tensor in self.format.pack(part).items():
                self._shards.add(f"{layer.prefix}{name.removesuffix('.weight')}.{suffix}", tensor)
            self._record(layer.prefix + name, statistics.output_error(weight, part.dequantize()))
        return names

    def finish(self) -> Artifact:
        names = self._shards.finish()
        config = json.loads((self.base / "config.json").read_text())
        kept = [n.removesuffix(".weight") for n in self.kept]
        config["quantization_config"] = self.format.config(self.grid, kept)
        config.pop("torch_dtype", None)
        config["dtype"] = config["torch_dtype"] = "float16"
        write_json(self.folder / "config.json", config)
        for name in TOKENIZER_FILES:
            if (self.base / name).exists():
                shutil.copyfile(self.base / name, self.folder / name)
                names.append(name)
        names.append("config.json")
        sizes = [(self.folder / n).stat().st_size for n in names if n.endswith(".safetensors")]
        return Artifact(
            variant=self.variant.name,
            folder=self.variant.folder,
            files={n: file_sha256(self.folder / n) for n in sorted(names)},
            size_bytes=sum(sizes),
            bits_per_weight=8 * sum(sizes) / self.n_parameters,
            tensors=tuple(self._records),
            seconds=self._seconds,
        )

    def _scale(self, layer: Layer, input_name: str) -> Tensor:
        read = next(i for i in layer.inputs if i.name == input_name)
        statistics = layer.statistics[input_name]
        weights = [layer.tensors[f"{n}.weight"] for n in read.linears if f"{layer.prefix}{n}.weight" not in self.kept]
        channels = read.absorber.channels.to(statistics.abs_sum.device) if read.absorber else None
        return awq_solver.search_scale(weights, statistics.hessian, statistics.mean_abs, self.grid, channels)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return shape[1] % self.grid.group_size == 0 and shape[0] % 8 == 0

    def _keep(self, name: str, weight: Tensor, is_linear: bool) -> None:
        self._shards.add(name, weight.to(STORED))
        if is_linear:
            note = f"kept in 16 bit: shape {list(weight.shape)} does not fit groups of {self.grid.group_size}"
            self._records.append(TensorRecord(name=name, type="F16", output_error=0.0, note=note))

    def _record(self, name: str, error: float) -> None:
        wanted = self.variant.group_size
        note = "" if wanted == self.grid.group_size else f"groups of {self.grid.group_size}: {wanted} does not divide every width"
        self._records.append(
            TensorRecord(name=name, type=f"int{self.grid.bits}-g{self.grid.group_size}", output_error=error, note=note)
        )


class PackedSource:
    """A GPTQ or AWQ folder as a TensorSource: what was published, decoded to dense float weights."""

    def __init__(self, folder: Path) -> None:
        self._config = json.loads((folder / "config.json").read_text()).get("quantization_config") or {}
        method = self._config.get("quant_method")
        if method not in FORMATS:
            raise BadModel(f"{folder}: quantization_config.quant_method is {method!r}; known: {', '.join(FORMATS)}")
        self._format = FORMATS[method]
        self._stored = _AnyCheckpoint(folder)

    def names(self) -> list[str]:
        last = "." + self._format.suffixes[0]
        plain = [n for n in self._stored.names() if n.rpartition(".")[2] not in self._format.suffixes]
        return plain + [n.removesuffix(last) + ".weight" for n in self._stored.names() if n.endswith(last)]

    def tensor(self, name: str) -> Tensor:
        if name in self._stored:
            return self._stored.tensor(name)
        stem = name.removesuffix(".weight")
        return self._format.dequantize({s: self._stored.tensor(f"{stem}.{s}") for s in self._format.suffixes}, self._config)


class _AnyCheckpoint(Checkpoint):
    """A checkpoint that may hold packed integers."""

    dtypes = (*Checkpoint.dtypes, "I32")
