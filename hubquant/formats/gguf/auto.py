"""gguf-auto@4.5bpw: a mixture by measured sensitivity, the best within a budget for the whole file.

Every tensor is stored in all candidate types as the pass goes by, each in a file of its own beside the target; when all errors
are known the types are chosen and the chosen bytes are copied together. That takes the disk of the candidates for the time of
the pass, and no second pass.

What an error costs: a linear's relative output error reaches the residual stream by the share that its branch (attention or
feed-forward) adds to it, and is then carried to the logits. So the cost is error × share, with the energies of the branches'
outputs from the calibration tokens; embeddings and head reach the stream whole.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from hubquant.artifact import Artifact, TensorRecord
from hubquant.errors import BadModel
from hubquant.formats.gguf.artifact import GgufArtifactWriter
from hubquant.formats.gguf.imatrix import Imatrix
from hubquant.formats.gguf.metadata import Provenance
from hubquant.formats.gguf.mixtures import Chosen, called_by, is_quantized, uniform
from hubquant.formats.writer import State
from hubquant.model.layer import Layer
from hubquant.quantize.allocate import Candidate, allocate, smallest
from hubquant.quantize.ggml import GGML_TYPES
from hubquant.recipe import MAX_FILE_BYTES, Variant

LADDER = ("IQ1_M", "IQ2_XXS", "IQ2_S", "IQ3_XXS", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
BELOW, ABOVE = 2, 3  # candidates narrower and wider than the budget
PADDING = 32  # between tensors
_BRANCH = re.compile(r"blk\.(\d+)\.(attn|ffn)")
_WRITES_TO_STREAM = re.compile(r"blk\.\d+\.(attn_output|ffn_down)")


def candidate_types(bits_per_weight: float) -> tuple[str, ...]:
    """The widest type within the budget, and its neighbours."""
    within = max((i for i, kind in enumerate(LADDER) if GGML_TYPES[kind].bits_per_weight <= bits_per_weight), default=0)
    return LADDER[max(0, within - BELOW) : within + 1 + ABOVE]


class AutoArtifactWriter:
    """Writes FOLDER/NAME-4.5BPW-Q4_K_M_AUTO.gguf. Raises BadModel if the model cannot keep the budget."""

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
        self.variant, self.folder, self.trials_folder = variant, folder, folder / f"{variant.mixture}.part"
        self._arguments = variant, folder, base, shapes, provenance, imatrix, max_bytes
        self._trials: dict[str, GgufArtifactWriter] = {}
        self._energy: dict[tuple[int, str], float] = {}
        self._embedding_energy = 0.0
        self._n_tokens = 1
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
            self._embedding_energy = float(tensor.square().sum(1).mean())

    def add_layer(self, layer: Layer) -> None:
        for trial in self._trials.values():
            trial.add_layer(layer)
        self._n_tokens = max([self._n_tokens, *(s.n_tokens for s in layer.statistics.values())])
        for name, weight in layer.tensors.items():
            statistics = layer.statistics_of(name)
            for stored in self._any.writer.gguf_names(layer.prefix + name) if statistics else ():
                if statistics and _WRITES_TO_STREAM.match(stored):
                    added = float(((weight @ statistics.hessian) * weight).sum())
                    self._energy[_branch(stored)] = self._energy.get(_branch(stored), 0.0) + added

    def state(self) -> State:
        return {
            "trials": {kind: trial.state() for kind, trial in self._trials.items()},
            "energy": [[*branch, energy] for branch, energy in self._energy.items()],
            "embedding_energy": self._embedding_energy,
            "n_tokens": self._n_tokens,
        }

    def restore(self, state: State) -> None:
        for kind, trial in self._trials.items():
            trial.restore(state["trials"][kind])
        self._energy = {(layer, part): energy for layer, part, energy in state["energy"]}
        self._embedding_energy, self._n_tokens = state["embedding_energy"], state["n_tokens"]

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
        return artifact.model_copy(update={"seconds": sum(trial.seconds for trial in self._trials.values())})

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
            raise BadModel(f"a budget of {self.variant.bits_per_weight:g} bits per weight; this model takes at least {reached:.2f}")
        return budget

    def _sizes(self, name: str) -> list[Candidate]:
        plans = {kind: trial.writer.plans[name] for kind, trial in self._trials.items()}
        return [Candidate(kind, plan.size_bytes, 0.0) for kind, plan in plans.items()]

    def _candidates(self) -> dict[str, list[Candidate]]:
        errors = {kind: self._errors(trial) for kind, trial in self._trials.items()}
        shares = self._shares()
        return {
            name: [replace(c, error=errors[c.kind][name] * shares.get(_branch(name), 1.0)) for c in self._sizes(name)]
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

    def _shares(self) -> dict[tuple[int, str], float]:
        """Of each branch in the energy of the stream after it, if what the branches add is not correlated."""
        stream, shares = self._embedding_energy, {}
        for branch in sorted(self._energy):
            added = self._energy[branch] / self._n_tokens
            stream += added
            shares[branch] = added / stream if stream > 0 else 1.0
        return shares

    def _records(self, origin: Mapping[str, str]) -> list[TensorRecord]:
        by_name = {kind: {r.name: r for r in trial.records} for kind, trial in self._trials.items()}
        records = []
        for record in self._any.records:
            stored = self._any.writer.gguf_names(record.name)
            kinds = dict.fromkeys(self._trials[origin[name]].writer.plans[name].kind for name in stored)
            records.append(by_name[origin[stored[0]]][record.name].model_copy(update={"type": "+".join(kinds)}))
        return records


class _Trial(GgufArtifactWriter):
    """One type for all. Of what the pass has no statistics, the error of the weights is measured."""

    def add_outside(self, name: str, tensor: Tensor) -> None:
        if self.writer.type_of(name) is not None:
            self.records.append(self.writer.add(name, tensor, measure=_relative_error))


def _relative_error(weight: Tensor, stored: Tensor) -> float:
    scale = float(weight.square().sum())
    return float((stored - weight).square().sum()) / scale if scale > 0 else 0.0


def _branch(name: str) -> tuple[int, str]:
    """Layer and part of the layer that a GGUF name is of; (−1, "") outside."""
    found: Any = _BRANCH.match(name)
    return (int(found[1]), str(found[2])) if found else (-1, "")
