"""gptq-auto@4.5bpw: each linear packed with the bits that its measured sensitivity deserves, the best within a budget.

Linears that vLLM joins have equal bits (those that share an input, all experts of a list). Every linear is solved and stored at all
widths as the pass goes by, in files beside the target; when all errors are known the widths are chosen and the chosen bytes copied
together. The channel scales that are folded are searched once, for one width, and hold for all.
"""

import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from hubquant.artifact import Artifact, TensorRecord
from hubquant.errors import BadModel
from hubquant.formats.dynamic import list_of_experts
from hubquant.formats.grids import Grids
from hubquant.formats.packed import PackedWriter
from hubquant.formats.sensitivity import Sensitivity
from hubquant.formats.shards import ShardWriter
from hubquant.formats.writer import State, trials_folder
from hubquant.model.layer import Layer
from hubquant.model.topology import LayerInput
from hubquant.quantize.allocate import Candidate, allocate, smallest
from hubquant.quantize.grid import Grid
from hubquant.recipe import BITS, Variant

HEADER_BYTES = 160  # of a safetensors header, for one tensor beside its name


class PackedAutoWriter(PackedWriter):
    """Raises BadModel if the model cannot keep the budget."""

    def __init__(
        self, variant: Variant, folder: Path, base: Path, shapes: Mapping[str, tuple[int, ...]], linears: set[str], *,
        embedding: str = "", **options: Any,
    ) -> None:  # fmt: skip
        """As PackedWriter's; `embedding`: the weight of the embedding, whose energy the stream begins with."""
        if options.pop("overrides", ()):
            raise BadModel("bits by sensitivity leave nothing to overrides; give one or the other")
        reference = max(b for b in BITS if b <= max(variant.bits, BITS[0])) if variant.bits else 4
        super().__init__(variant.model_copy(update={"bits": reference}), folder, base, shapes, linears, **options)
        self.variant, self._embedding, self._sensitivity = variant, embedding, Sensitivity()
        self._sizes = {n: prod(shape) for n, shape in shapes.items()}
        self._units: dict[str, list[str]] = {}
        self._widths: dict[int, dict[str, Grid]] = {}
        for bits in BITS:
            of = Grids(variant.model_copy(update={"bits": bits}), {n: shapes[n] for n in linears}, self.never).of
            self._widths[bits] = {name: grid for name, grid in of.items() if grid}
            self.grids.of |= {name: grid for name, grid in self._widths[bits].items() if not self.grids.of[name]}
        self._records_of: dict[int, dict[str, TensorRecord]] = {bits: {} for bits in BITS}
        self._bytes: dict[int, dict[str, int]] = {bits: {} for bits in BITS}
        self._check_budget(shapes)
        self.trials_folder = trials_folder(folder, variant)
        self._trials = {bits: ShardWriter(self.trials_folder / f"int{bits}") for bits in BITS}

    def add_outside(self, name: str, tensor: Tensor) -> None:
        if name == self._embedding:
            self._sensitivity.add_embedding(tensor)
        super().add_outside(name, tensor)

    def add_layer(self, layer: Layer) -> None:
        self._sensitivity.add_layer(layer)
        super().add_layer(layer)

    def _quantize(self, layer: Layer, read: LayerInput) -> list[str]:
        names = [f"{n}.weight" for n in read.linears if self.grids.of[f"{layer.prefix}{n}.weight"]]
        for bits, grids in self._widths.items():
            for grid in dict.fromkeys(grids[layer.prefix + n] for n in names if layer.prefix + n in grids):
                for name, tensors, record in self._solved(
                    layer, read, [n for n in names if grids.get(layer.prefix + n) == grid], grid
                ):
                    for stored, tensor in tensors.items():
                        self._trials[bits].add(stored, tensor)
                    self._records_of[bits][layer.prefix + name] = record
                    self._bytes[bits][layer.prefix + name] = sum(t.nbytes for t in tensors.values())
        for name in names:
            unit = list_of_experts(self.stored(layer.prefix + name)) or layer.prefix + read.name
            self._units.setdefault(unit, []).append(layer.prefix + name)
        return names

    def state(self) -> State:
        trials = {
            str(bits): {"shards": trial.state(), "records": list(self._records_of[bits].items()), "bytes": self._bytes[bits]}
            for bits, trial in self._trials.items()
        }
        return super().state() | {"trials": trials, "units": self._units, "sensitivity": self._sensitivity.state()}

    def restore(self, state: State) -> None:
        super().restore(state)
        for bits, trial in self._trials.items():
            kept = state["trials"][str(bits)]
            trial.restore(kept["shards"])
            self._records_of[bits] = {name: TensorRecord.model_validate(record) for name, record in kept["records"]}
            self._bytes[bits] = kept["bytes"]
        self._units = state["units"]
        self._sensitivity.restore(state["sensitivity"])

    def finish(self) -> Artifact:
        chosen = {unit: int(c.kind) for unit, c in self._choose().items()}
        for unit, bits in chosen.items():
            for name in self._units[unit]:
                self.grids.of[name] = self._widths[bits][name]
                self._records.append(self._records_of[bits][name])
                stem = self.stored(name).removesuffix(".weight")
                for suffix in self.format.suffixes:
                    self._shards.add(f"{stem}.{suffix}", self._trials[bits].read(f"{stem}.{suffix}"))
        # what has no rule is the narrowest: by its width vLLM chooses kernels, and those for 2 and 3 bits do the others too
        self.grids.default = min((g for g in self.grids.of.values() if g), key=lambda g: g.bits)
        artifact = super().finish()
        weights = sum(self._sizes[n] for names in self._units.values() for n in names)
        taken = sum(self._bytes[bits][n] for unit, bits in chosen.items() for n in self._units[unit])
        return artifact.model_copy(update={"nominal_bits": self.variant.bits or int(8 * taken / weights)})

    def discard(self) -> None:
        super().discard()
        shutil.rmtree(self.trials_folder, ignore_errors=True)

    def _choose(self) -> dict[str, Candidate]:
        """The width of each unit."""
        shares = self._sensitivity.of([n for names in self._units.values() for n in names])
        measured = {b: [r.output_error for r in own.values() if r.output_error is not None] for b, own in self._records_of.items()}
        candidates: dict[str, list[Candidate]] = {}
        for unit, names in self._units.items():
            experts = len({n.rpartition(".experts.")[2].partition(".")[0] for n in names}) if unit.endswith(".experts") else 1
            for bits, records in self._records_of.items():
                if any(n not in records for n in names):
                    continue  # words of this width do not fit all of them
                usual = median(measured[bits] or [0.0])
                errors = (records[n].output_error for n in names)
                cost = sum((usual if e is None else e) * shares[n] for n, e in zip(names, errors, strict=True)) / experts
                candidates.setdefault(unit, []).append(Candidate(str(bits), sum(self._bytes[bits][n] for n in names), cost))
        try:
            return allocate(candidates, self._budget([n for names in self._units.values() for n in names], self._shards.size_bytes))
        except ValueError as error:
            raise BadModel(f"the budget of {self.variant.name} cannot be kept: {error}") from None

    def _budget(self, packed: list[str], others: int) -> int:
        """Bytes for the packed linears; `others`: what the rest takes on disk."""
        if not self.variant.size_bytes:
            return int(self.variant.bits_per_weight * sum(self._sizes[n] for n in packed) / 8)
        tensors = [f"{n}.{s}" for n in packed for s in self.format.suffixes] + [n for n in self._sizes if n not in set(packed)]
        return self.variant.size_bytes - others - sum(len(name) + HEADER_BYTES for name in tensors)

    def _check_budget(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        packed = [n for n, grid in self.grids.of.items() if grid]
        others = sum((4 if n in self.float32 else 2) * size for n, size in self._sizes.items() if n not in set(packed))
        least = smallest(
            {n: [Candidate(str(b), _packed_bytes(shapes[n], g[n]), 0.0) for b, g in self._widths.items() if n in g] for n in packed}
        )
        budget = self._budget(packed, others)
        if least > budget:
            weights = sum(self._sizes[n] for n in packed)
            reached = f"{8 * least / weights:.2f} bits per packed weight"
            if self.variant.size_bytes:
                reached = f"{(self.variant.size_bytes + least - budget) / 1e6:,.1f} MB"
            raise BadModel(f"the budget of {self.variant.name}: this model takes at least {reached}")


def _packed_bytes(shape: tuple[int, ...], grid: Grid) -> int:
    """qweight, qzeros, scales, g_idx of a linear [out, in]."""
    groups = shape[1] // grid.group_size
    return prod(shape) * grid.bits // 8 + groups * shape[0] * grid.bits // 8 + 2 * groups * shape[0] + 4 * shape[1]
