"""GPTQ and AWQ folders, written and read: what differs between the two is in gptq.py and awq.py."""

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubquant import __version__
from hubquant.artifact import Artifact, TensorRecord, file_sha256
from hubquant.errors import BadModel
from hubquant.formats import awq, gptq
from hubquant.formats.shards import ShardWriter, copy_file, write_json
from hubquant.formats.writer import State
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.layer import Layer
from hubquant.model.topology import LayerInput
from hubquant.quantize import awq as awq_solver
from hubquant.quantize import gptq as gptq_solver
from hubquant.quantize.grid import Grid, QuantizedWeight
from hubquant.recipe import Variant

GROUP_SIZES = (128, 64, 32)
OUTPUTS_PER_WORD = 8
STORED = torch.float16
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class PackedFormat:
    """What the writer and the reader need of a format: its packing, its tensors' suffixes, its config block, its checks."""

    pack: Callable[[QuantizedWeight], dict[str, Tensor]]
    suffixes: tuple[str, ...]
    config: Callable[[Grid, list[str]], dict[str, Any]]
    dequantize: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Tensor]
    check: Callable[[str, Mapping[str, Tensor], Mapping[str, Any]], None]


FORMATS: dict[str, PackedFormat] = {
    "gptq": PackedFormat(
        gptq.pack,
        gptq.SUFFIXES,
        lambda grid, kept: gptq.quantization_config(grid, kept, gptq_solver.DAMP_RATIO, f"hubquant:{__version__}"),
        gptq.dequantize,
        gptq.check,
    ),
    "awq": PackedFormat(awq.pack, awq.SUFFIXES, awq.quantization_config, awq.dequantize, awq.check),
}


class PackedWriter:
    """Writes one GPTQ or AWQ variant into `folder`, layer by layer.

    Linears that no group size or no whole word fits stay in 16 bit; both that and a smaller group are recorded. Raises
    BadModel if no linear can be packed, or a value is beyond float16.
    """

    def __init__(
        self,
        variant: Variant,
        folder: Path,
        base: Path,
        shapes: Mapping[str, tuple[int, ...]],
        linears: set[str],
        *,
        routers: Collection[str] = (),
        float32: Collection[str] = (),
        transposed: Collection[str] = (),
        stored: Callable[[str], str] = str,
    ) -> None:
        """`base`: the model folder; `shapes`: every stored tensor; `linears`: names of the weights of the layers' linears.

        `routers`: the linears that choose among experts; `float32`: what is not rounded to 16 bit; `transposed`: the weights
        that are saved as [in, out] unless packed. `stored` gives the name that a tensor has in published checkpoints for the
        name of its module; records and files speak those.
        """
        self.variant, self.folder, self.base = variant, folder, base
        self.format = FORMATS[variant.format]
        self.routers, self.float32, self.stored = frozenset(routers), frozenset(float32), stored
        self.transposed = frozenset(transposed)
        fits = {n for n in linears if shapes[n][1] % GROUP_SIZES[-1] == 0 and shapes[n][0] % OUTPUTS_PER_WORD == 0}
        packable = fits - self.routers - self.float32
        if not packable:
            raise BadModel(
                f"no linear of this model can be packed: each needs inputs in multiples of {GROUP_SIZES[-1]} and outputs in "
                f"multiples of {OUTPUTS_PER_WORD}"
            )
        sizes = (variant.group_size, *GROUP_SIZES)
        group_size = next(g for g in sizes if all(shapes[n][1] % g == 0 for n in packable))
        self.grid = Grid(variant.bits, group_size, variant.symmetric)
        self.linears, self.kept = linears, linears - packable
        self.n_parameters = sum(torch.Size(s).numel() for s in shapes.values())
        self._shards = ShardWriter(folder)
        self._folds: dict[str, Mapping[str, Tensor]] = {}
        self._records: list[TensorRecord] = []
        self._seconds = 0.0

    def add_outside(self, name: str, tensor: Tensor) -> None:
        self._shards.add(self.stored(name), self._rounded(name, tensor))

    def add_layer(self, layer: Layer) -> None:
        started = time.monotonic()
        scales = {i.name: self._scale(layer, i.name) for i in layer.inputs if i.absorber is not None}
        folded = layer.folded(scales, STORED, self._folds.get(layer.prefix))
        self._folds = {layer.prefix: folded.folds}
        packed = {n for read in folded.inputs for n in self._quantize(folded, read)}
        for name, weight in folded.tensors.items():
            if name not in packed:
                self._keep(layer.prefix + name, weight)
        self._seconds += time.monotonic() - started

    def _quantize(self, layer: Layer, read: LayerInput) -> list[str]:
        """Solve and store the linears that read one input; their rows are independent, so they are solved as one matrix."""
        names = [f"{n}.weight" for n in read.linears if f"{layer.prefix}{n}.weight" not in self.kept]
        if not names:
            return names
        statistics = layer.statistics[read.name]
        weights = [layer.tensors[n] for n in names]
        hessian = torch.zeros_like(statistics.hessian) if statistics.starved else statistics.hessian
        solved = gptq_solver.solve(torch.cat(weights), hessian, self.grid, statistics.damp_ratio)
        for name, weight, part in zip(names, weights, solved.split([w.shape[0] for w in weights]), strict=True):
            for suffix, tensor in self.format.pack(part).items():
                self._shards.add(self.stored(f"{layer.prefix}{name.removesuffix('.weight')}.{suffix}"), tensor)
            error = statistics.output_error(weight, part.dequantize()) if bool(hessian.any()) else None
            self._record(layer.prefix + name, error, statistics.shortage if statistics.starved else "")
        return names

    def state(self) -> State:
        """Between two layers, where no fold is carried over."""
        return {"shards": self._shards.state(), "records": self._records, "kept": sorted(self.kept), "seconds": self._seconds}

    def restore(self, state: State) -> None:
        self._shards.restore(state["shards"])
        self._records = [TensorRecord.model_validate(record) for record in state["records"]]
        self.kept, self._seconds = set(state["kept"]), state["seconds"]

    def finish(self) -> Artifact:
        names = self._shards.finish()
        config = json.loads((self.base / "config.json").read_text())
        kept = sorted(self.stored(n).removesuffix(".weight") for n in self.kept)
        config["quantization_config"] = self.format.config(self.grid, kept)
        config.pop("torch_dtype", None)
        config["dtype"] = config["torch_dtype"] = "float16"
        write_json(self.folder / "config.json", config)
        for name in TOKENIZER_FILES:
            if (self.base / name).exists():
                copy_file(self.base / name, self.folder / name)
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

    def discard(self) -> None:
        self._shards.discard()

    def _scale(self, layer: Layer, input_name: str) -> Tensor:
        read = next(i for i in layer.inputs if i.name == input_name)
        statistics = layer.statistics[input_name]
        if statistics.starved:
            return torch.ones_like(statistics.abs_sum)
        weights = [layer.tensors[f"{n}.weight"] for n in read.linears if f"{layer.prefix}{n}.weight" not in self.kept]
        weights += layer.following.get(input_name, ())
        channels = read.absorber.channels.to(statistics.abs_sum.device) if read.absorber else None
        return awq_solver.search_scale(weights, statistics.hessian, statistics.mean_abs, self.grid, channels)

    def _keep(self, name: str, weight: Tensor) -> None:
        self._shards.add(self.stored(name), self._rounded(name, weight))
        if name in self.linears:
            reason = "nothing that it reads was found"
            if name in self.routers:
                reason = "it chooses among the experts"
            elif name in self.float32:
                reason = "transformers computes it in float32"
            elif name in self.kept:
                reason = f"shape {list(weight.shape)} is no multiple of [{OUTPUTS_PER_WORD}, {self.grid.group_size}]"
            bits, stored_as = (32, "F32") if name in self.float32 else (16, "F16")
            note = f"kept in {bits} bit: {reason}"
            self._records.append(TensorRecord(name=self.stored(name), type=stored_as, output_error=0.0, note=note))
            self.kept = self.kept | {name}

    def _rounded(self, name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.T.contiguous() if name in self.transposed else tensor
        return tensor if name in self.float32 else _stored(name, tensor)

    def _record(self, name: str, error: float | None, shortage: str) -> None:
        wanted = self.variant.group_size
        notes = (
            [f"groups of {self.grid.group_size}: {wanted} does not divide every width"] if wanted != self.grid.group_size else []
        )
        notes += [f"rounded to nearest: {shortage or 'no calibration token reached it'}"] if error is None else []
        type_name = f"int{self.grid.bits}-g{self.grid.group_size}"
        self._records.append(TensorRecord(name=self.stored(name), type=type_name, output_error=error, note="; ".join(notes)))


class PackedSource:
    """A GPTQ or AWQ folder as a TensorSource: what was published, decoded on `device` to dense float weights.

    Raises BadModel: no such folder, another method or layout, tensors that are missing or do not fit each other.
    """

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        self._device = device
        self._config = _quantization_config(folder)
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
        tensors = {s: self._stored.tensor(f"{stem}.{s}").to(self._device) for s in self._format.suffixes}
        self._format.check(stem, tensors, self._config)
        return self._format.dequantize(tensors, self._config)

    def as_saved(self, name: str) -> bool:
        return name in self._stored

    def release(self) -> None:
        self._stored.release()


class _AnyCheckpoint(Checkpoint):
    """A checkpoint that may hold packed integers."""

    dtypes = (*Checkpoint.dtypes, "I32")


def _stored(name: str, tensor: Tensor) -> Tensor:
    """The tensor in the dtype of the files. Raises BadModel if a value does not fit it."""
    stored = tensor.to(STORED)
    if not bool(torch.isfinite(stored).all()):
        raise BadModel(f"tensor {name} holds {float(tensor.abs().max()):g}, which is beyond float16: make a GGUF variant instead")
    return stored


def _quantization_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
        return dict(config.get("quantization_config") or {})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadModel(f"{folder}/config.json cannot be read as a model's config: {error}") from None
