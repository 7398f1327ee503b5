"""GPTQ and AWQ folders, written: what differs between the two is in packedformat.py."""

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hubquant.artifact import Artifact, TensorRecord, file_sha256
from hubquant.errors import BadModel
from hubquant.formats.grids import Grids
from hubquant.formats.packedformat import FORMATS
from hubquant.formats.shards import ShardWriter, copy_file, write_json
from hubquant.formats.writer import State
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.layer import Layer
from hubquant.model.topology import LayerInput
from hubquant.quantize import actorder
from hubquant.quantize import awq as awq_solver
from hubquant.quantize import gptq as gptq_solver
from hubquant.quantize.grid import Grid, QuantizedWeight
from hubquant.recipe import ROW, Override, Variant

STORED = torch.float16
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def solver(variant: Variant, grid: Grid) -> Callable[[Tensor, Tensor, Grid, float], QuantizedWeight]:
    """How the linears on this grid are solved: those of a whole row as one group in one way only."""
    if variant.order == "static" or grid.group_size == ROW:
        return actorder.solve_static
    return actorder.solve_regrouped if variant.order == "actorder" else gptq_solver.solve


class PackedWriter:
    """Writes one GPTQ or AWQ variant into `folder`, layer by layer.

    Linears that no group size or no whole word fits stay in 16 bit; both that and a smaller group are recorded. Raises
    BadModel if no linear can be packed, a value is beyond float16, or the variant packs a head that the model has not got.
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
        head: str = "",
        overrides: Sequence[Override] = (),
        left_alone: Collection[str] = (),
    ) -> None:
        """`base`: the model folder; `shapes`: every stored tensor; `linears`: names of the weights of the layers' linears.

        `routers`: the linears that choose among experts; `float32`: what is not rounded to 16 bit; `transposed`: the weights
        that are saved as [in, out] unless packed. `stored` gives the name that a tensor has in published checkpoints for the
        name of its module; records and files speak those. `head`: the weight of a head of its own; `overrides` are GPTQ's;
        `left_alone`: what of the base's files is no part of the model, and is copied in 16 bit.
        """
        self.variant, self.folder, self.base = variant, folder, base
        self.format = FORMATS[variant.format]
        self.float32, self.transposed, self.stored = frozenset(float32), frozenset(transposed), stored
        self.packs_head, self.head = variant.head, head if variant.head else ""
        if variant.head and not head:
            raise BadModel("its head is the embedding once more: packed it would be a second copy; take the variant without -head")
        widths = {n: shapes[n] for n in sorted({*linears, *({head} if variant.head else ())})}
        dense = dict.fromkeys(float32, "transformers computes it in float32") | dict.fromkeys(
            routers, "it chooses among the experts"
        )
        self.never = {name: why for name, why in dense.items() if name in widths}
        self.grids = Grids(variant, widths, self.never, overrides if variant.format == "gptq" else (), stored)
        self._all_grids = {self.grids.default, *filter(None, self.grids.of.values())}
        self.left_alone = list(left_alone)
        self.n_parameters = sum(torch.Size(s).numel() for s in (*shapes.values(), *_shapes(base, left_alone)))
        self._shards = ShardWriter(folder)
        self._folds: dict[str, Mapping[str, Tensor]] = {}
        self._records: list[TensorRecord] = []
        self._found_kept: dict[str, str] = {}
        self._seconds = 0.0

    def add_outside(self, name: str, tensor: Tensor) -> None:
        if self.left_alone:
            self._copy_rest()
        if name != self.head:  # which comes as a layer, with statistics
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
        """Solve and store the linears that read one input; returns their weights' names in the layer."""
        by_grid: dict[Grid, list[str]] = {}
        for name in (f"{n}.weight" for n in read.linears):
            if grid := self.grids.of[layer.prefix + name]:
                by_grid.setdefault(grid, []).append(name)
        for grid, names in by_grid.items():
            for _, tensors, record in self._solved(layer, read, names, grid):
                for name, tensor in tensors.items():
                    self._shards.add(name, tensor)
                self._records.append(record)
        return [name for names in by_grid.values() for name in names]

    def _solved(
        self, layer: Layer, read: LayerInput, names: list[str], grid: Grid
    ) -> Iterator[tuple[str, dict[str, Tensor], TensorRecord]]:
        """Of each weight the tensors to store, by their names, and the record. Rows are independent: one matrix is solved."""
        statistics = layer.statistics[read.name]
        weights = [layer.tensors[n] for n in names]
        hessian = torch.zeros_like(statistics.hessian) if statistics.starved else statistics.hessian
        solve = solver(self.variant, grid)
        solved = solve(torch.cat(weights), hessian, grid.of_width(weights[0].shape[1]), statistics.damp_ratio)
        for name, part in zip(names, solved.split([w.shape[0] for w in weights]), strict=True):
            stem = f"{layer.prefix}{name.removesuffix('.weight')}"
            tensors = {
                self.stored(f"{stem}.{suffix}"): tensor for suffix, tensor in self.format.pack(part, self._all_grids).items()
            }
            error = None if part.losses is None else layer.output_error(name, part.losses)
            shortage = statistics.shortage if statistics.starved else ""
            yield name, tensors, self._record(layer.prefix + name, grid, error, shortage)

    def state(self) -> State:
        """Between two layers, where no fold is carried over."""
        return {"shards": self._shards.state(), "records": self._records, "kept": self._found_kept, "seconds": self._seconds}

    def restore(self, state: State) -> None:
        self._shards.restore(state["shards"])
        self._records = [TensorRecord.model_validate(record) for record in state["records"]]
        self._found_kept, self._seconds, self.left_alone = state["kept"], state["seconds"], []
        for name, why in self._found_kept.items():
            self.grids.keep(name, why)

    def finish(self) -> Artifact:
        names = self._shards.finish()
        config = json.loads((self.base / "config.json").read_text())
        grids = {self.stored(n).removesuffix(".weight"): grid for n, grid in self.grids.of.items()}
        config["quantization_config"] = self.format.config(self.variant, self.grids.default, grids, self._all_grids)
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

    def _copy_rest(self) -> None:
        checkpoint = Checkpoint(self.base)
        while self.left_alone:
            name = self.left_alone.pop(0)
            tensor = checkpoint.tensor(name)
            self._shards.add(name, _stored(name, tensor))
            if tensor.dim() == 2:
                note = "kept in 16 bit: it is of another part than the language model"
                self._records.append(TensorRecord(name=name, type="F16", output_error=0.0, note=note))

    def _scale(self, layer: Layer, input_name: str) -> Tensor:
        read = next(i for i in layer.inputs if i.name == input_name)
        statistics = layer.statistics[input_name]
        if statistics.starved:
            return torch.ones_like(statistics.importance)
        grids = {n: self.grids.of[f"{layer.prefix}{n}.weight"] for n in read.linears}
        weights = [layer.tensors[f"{n}.weight"] for n, grid in grids.items() if grid]
        weights += layer.following.get(input_name, ())
        coarsest = min((g for g in grids.values() if g), key=lambda g: g.bits, default=self.grids.default)
        grid = coarsest.of_width(statistics.width)
        channels = read.absorber.channels.to(statistics.hessian.device) if read.absorber else None
        return awq_solver.search_scale(weights, statistics.remaining, grid, channels)

    def _keep(self, name: str, weight: Tensor) -> None:
        self._shards.add(self.stored(name), self._rounded(name, weight))
        if name in self.grids.of:
            self.grids.keep(name, "nothing that it reads was found")
            self._found_kept[name] = self.grids.why[name]
            bits, stored_as = (32, "F32") if name in self.float32 else (16, "F16")
            note = f"kept in {bits} bit: {self.grids.why[name]}"
            self._records.append(TensorRecord(name=self.stored(name), type=stored_as, output_error=0.0, note=note))

    def _rounded(self, name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.T.contiguous() if name in self.transposed else tensor
        return tensor if name in self.float32 else _stored(name, tensor)

    def _record(self, name: str, grid: Grid, error: float | None, shortage: str) -> TensorRecord:
        wanted = self.grids.asked[name]
        notes = [f"groups of {grid.group_size}: {wanted} does not divide every width"] if wanted != grid.group_size else []
        notes += [f"rounded to nearest: {shortage or 'no calibration token reached it'}"] if error is None else []
        type_name = f"int{grid.bits}-{'row' if grid.group_size == ROW else f'g{grid.group_size}'}"
        return TensorRecord(name=self.stored(name), type=type_name, output_error=error, note="; ".join(notes))


def _shapes(base: Path, names: Collection[str]) -> list[tuple[int, ...]]:
    return [*map(Checkpoint(base).shape, names)] if names else []


def _stored(name: str, tensor: Tensor) -> Tensor:
    """The tensor in the dtype of the files. Raises BadModel if a value does not fit it."""
    stored = tensor.to(STORED)
    if not bool(torch.isfinite(stored).all()):
        raise BadModel(f"tensor {name} holds {float(tensor.abs().max()):g}, which is beyond float16: make a GGUF variant instead")
    return stored
