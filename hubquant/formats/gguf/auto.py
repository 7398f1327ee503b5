"""gguf-auto@4.5bpw: a mixture by measured sensitivity, the best within a budget for the whole file.

Every tensor is stored in all candidate types as the pass goes by, each in a file of its own beside the target; when all errors
are known the types are chosen and the chosen bytes are copied together. That takes the disk of the candidates for the time of
the pass, and no second pass.
What an error costs: formats/sensitivity.py.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from statistics import median

from torch import Tensor

from hubquant.artifact import Artifact, TensorRecord
from hubquant.errors import BadModel, UsageError
from hubquant.formats.gguf.artifact import GgufArtifactWriter
from hubquant.formats.gguf.imatrix import Imatrix
from hubquant.formats.gguf.metadata import Provenance
from hubquant.formats.gguf.mixtures import Chosen, called_by, is_quantized, uniform
from hubquant.formats.sensitivity import Sensitivity
from hubquant.formats.writer import State, trials_folder
from hubquant.model.layer import Layer
from hubquant.quantize.allocate import Candidate, allocate, smallest
from hubquant.quantize.ggml import GGML_TYPES
from hubquant.recipe import MAX_FILE_BYTES, Variant, within

LADDER = ("IQ1_M", "IQ2_XXS", "IQ2_S", "IQ3_XXS", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
BELOW, ABOVE = 2, 3  # candidates narrower and wider than the budget
PADDING = 32  # between tensors


def candidate_types(bits_per_weight: float) -> tuple[str, ...]:
    """The widest type within the budget, and its neighbours."""
    within = max((i for i, kind in enumerate(LADDER) if GGML_TYPES[kind].bits_per_weight <= bits_per_weight), default=0)
    return LADDER[max(0, within - BELOW) : within + 1 + ABOVE]


class AutoArtifactWriter:
    """Writes FOLDER/NAME-4.5BPW-Q4_K_M_AUTO.gguf. Raises BadModel if the model cannot keep the budget."""

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
    ) -> None:
        if variant.size_bytes:
            variant = _within(variant, 8 * variant.size_bytes / sum(map(prod, shapes.values())))
        self.variant, self.folder, self.trials_folder = variant, folder, trials_folder(folder, variant)
        self._arguments = variant, folder, base, shapes, provenance, imatrix, max_bytes
        self._trials: dict[str, GgufArtifactWriter] = {}
        self._sensitivity = Sensitivity()
        try:
            for kind in candidate_types(variant.bits_per_weight):
                trial = (variant, self.trials_folder / kind, base, shapes, provenance, imatrix, max_bytes)
                self._trials[kind] = _Trial(*trial, chosen=uniform(kind))
            self._budget = self._bytes_for_matrices()
        except BaseException:
            self.discard()
            raise

    def add_outside(self, name: str, tensor: Tensor) -> None:
        for trial in self._trials.values():
            trial.add_outside(name, tensor)
        if "token_embd.weight" in self._any.writer.gguf_names(name):
            self._sensitivity.add_embedding(tensor)

    def add_layer(self, layer: Layer) -> None:
        for trial in self._trials.values():
            trial.add_layer(layer)
        self._sensitivity.add_layer(layer)

    def state(self) -> State:
        trials = {kind: trial.state() for kind, trial in self._trials.items()}
        return {"trials": trials, "sensitivity": self._sensitivity.state()}

    def restore(self, state: State) -> None:
        for kind, trial in self._trials.items():
            trial.restore(state["trials"][kind])
        self._sensitivity.restore(state["sensitivity"])

    def finish(self) -> Artifact:
        chosen = allocate(self._candidates(), self._budget)
        # as stored, fallbacks and vectors included: by the trial that has it so
        origin = {name: chosen[name].kind if name in chosen else next(iter(self._trials)) for name in self._any.writer.plans}
        types = {name: self._trials[kind].writer.plans[name].kind for name, kind in origin.items()}
        most = Counter(types[name] for name in chosen).most_common(1)[0][0]
        final = GgufArtifactWriter(*self._arguments, chosen=Chosen(lambda _: types, called_by(most)))
        try:
            final.writer.copy({name: self._trials[kind].writer for name, kind in origin.items()})
            final.records += self._records(origin)
            artifact = final.finish()
        except BaseException:
            final.discard()
            raise
        seconds = sum(trial.seconds for trial in self._trials.values())
        return artifact.model_copy(update={"seconds": seconds, "nominal_bits": self.variant.bits})

    def discard(self) -> None:
        for trial in self._trials.values():
            trial.discard()
        shutil.rmtree(self.trials_folder, ignore_errors=True)

    @property
    def _any(self) -> GgufArtifactWriter:
        return next(iter(self._trials.values()))

    def _matrices(self) -> Iterator[str]:
        return (name for name, plan in self._any.writer.plans.items() if is_quantized(name, plan.shape))

    def _bytes_for_matrices(self) -> int:
        """What the budget leaves for them: less the header, the vectors, and what lies between tensors."""
        plans = self._any.writer.plans
        stored = sum(plan.size_bytes for plan in plans.values())
        others = self._any.writer.size_bytes - stored + sum(plans[n].size_bytes for n in plans.keys() - set(self._matrices()))
        budget = int(self.variant.bits_per_weight * self._any.n_parameters / 8) - others - PADDING * len(plans)
        least = smallest({name: self._sizes(name) for name in self._matrices()})
        if least > budget:
            reached = 8 * (least + others + PADDING * len(plans)) / self._any.n_parameters
            raise BadModel(
                f"a budget of {self.variant.bits_per_weight:.4g} bits per weight; this model takes at least {reached:.2f}"
            )
        return budget

    def _sizes(self, name: str) -> list[Candidate]:
        plans = {kind: trial.writer.plans[name] for kind, trial in self._trials.items()}
        return [Candidate(kind, plan.size_bytes, 0.0) for kind, plan in plans.items()]

    def _candidates(self) -> dict[str, list[Candidate]]:
        errors = {kind: self._errors(trial) for kind, trial in self._trials.items()}
        by_weight = self._sensitivity.of([record.name for record in self._any.records])
        shares = {stored: share for name, share in by_weight.items() for stored in self._any.writer.gguf_names(name)}
        return {
            name: [replace(c, error=errors[c.kind][name] * shares.get(name, 1.0)) for c in self._sizes(name)]
            for name in self._matrices()
        }

    def _errors(self, trial: GgufArtifactWriter) -> dict[str, float]:
        """GGUF name → relative output error; the mean over the matrices of a stack, the usual one where none was measured."""
        found: dict[str, list[float]] = {name: [] for name in self._matrices()}
        for record in trial.records:
            for name in trial.writer.gguf_names(record.name):
                if name in found and record.output_error is not None:
                    found[name].append(record.output_error)
        usual = median(error for errors in found.values() for error in errors)
        return {name: sum(errors) / len(errors) if errors else usual for name, errors in found.items()}

    def _records(self, origin: Mapping[str, str]) -> list[TensorRecord]:
        by_name = {kind: {r.name: r for r in trial.records} for kind, trial in self._trials.items()}
        records = []
        for record in self._any.records:
            stored = self._any.writer.gguf_names(record.name)
            kinds = dict.fromkeys(self._trials[origin[name]].writer.plans[name].kind for name in stored)
            records.append(by_name[origin[stored[0]]][record.name].model_copy(update={"type": "+".join(kinds)}))
        return records


def _within(variant: Variant, bits_per_weight: float) -> Variant:
    try:
        return within(variant, bits_per_weight)
    except UsageError as error:
        raise BadModel(str(error)) from None


class _Trial(GgufArtifactWriter):
    """One type for all. Of what the pass has no statistics, the error of the weights is measured."""

    def add_outside(self, name: str, tensor: Tensor) -> None:
        if self.writer.type_of(name) is not None:
            self.records.append(self.writer.add(name, tensor, measure=_relative_error))


def _relative_error(weight: Tensor, stored: Tensor) -> float:
    scale = float(weight.square().sum())
    return float((stored - weight).square().sum()) / scale if scale > 0 else 0.0
