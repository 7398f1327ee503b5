"""What one pass leaves behind and what was measured of it: plain values that travel as JSON between steps, cards and pages."""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field

from hubquant.recipe import Frozen, Recipe, Variant, variant


def file_sha256(path: Path) -> str:
    """64 hex digits, as the Hub names large files."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TensorRecord(Frozen):
    """How one weight matrix was stored. `output_error` is tr(ΔHΔᵀ)/tr(WHWᵀ), the relative error of its output."""

    name: str
    type: str  # "int4-g128", "Q4_K", "F16", ...
    output_error: float | None = None
    note: str = ""  # why it deviates from the variant's rule: kept in 16 bit, smaller group, rounded to nearest


class Refinement(Frozen):
    """What became of an artifact's scales after the pass. `held_out_kl`: mean KL divergence on calibration windows that were not
    learned from, in nats per token, before and after; where after is not less, the scales of the pass were kept."""

    steps: int
    held_out_kl: tuple[float, float]

    @property
    def kept(self) -> bool:
        return self.held_out_kl[1] < self.held_out_kl[0]


class Artifact(Frozen):
    """One variant on disk. `folder` is relative to the output folder, `files` (name → sha256) relative to `folder`.

    `nominal_bits`: the width that the gate goes by, where the variant's name does not say it. Of a refined one the records of the
    tensors say what the pass left.
    """

    variant: str
    folder: str
    files: dict[str, str]
    size_bytes: int
    bits_per_weight: float
    nominal_bits: int = 0
    tensors: tuple[TensorRecord, ...] = ()
    seconds: float = 0.0
    refinement: Refinement | None = None

    @property
    def main_file(self) -> str:
        """The file a reader asks for: the GGUF file, else the first safetensors file."""
        return next(f for f in sorted(self.files) if f.endswith((".gguf", ".safetensors")) and f != "imatrix.gguf")

    def path(self, out: Path) -> Path:
        """What is opened to read it back: the GGUF file, else the folder."""
        folder = out / self.folder
        return folder / self.main_file if self.main_file.endswith(".gguf") else folder


class Protocol(Frozen):
    """How tokens are scored. Two numbers compare only if all of this is equal."""

    name: str  # "gptq-512", "llamacpp-512"
    window: int
    stride: int
    bos: Literal["as tokenized", "replaces first token of each window"]
    scored: Literal["all", "second half"]
    text: str
    text_sha256: str
    n_tokens: int  # tokens scored


class Evaluation(Frozen):
    """One variant against its base under one protocol. KL divergence in nats, base → quantized, per scored token."""

    variant: str
    protocol: Protocol
    perplexity: float
    base_perplexity: float
    mean_kl: float
    p99_kl: float
    p999_kl: float
    max_kl: float
    top1_agreement: float

    @property
    def perplexity_ratio(self) -> float:
        return self.perplexity / self.base_perplexity


class Verdict(Frozen):
    """One check of the gate."""

    variant: str
    check: str
    value: float
    limit: float
    passed: bool
    reason: str


class Base(Frozen):
    """The base model as it was read. `fingerprint` is the sha256 over the names and hashes of the files that decide the
    output (weights, config, tokenizer, chat template); a changed README leaves it as it is."""

    repo_id: str
    revision: str  # 40 hex digits, or "" for a local folder
    fingerprint: str
    license: str = ""
    architecture: str = ""
    parameters: int = 0
    size_bytes: int = 0


class Report(Frozen):
    """`hubquant.json` of an output folder: how it was made and what it lost. The published manifest is made from it."""

    schema_version: Literal[1] = 1
    hubquant_version: str
    versions: dict[str, str]
    base: Base
    recipe: Recipe
    artifacts: tuple[Artifact, ...]
    evaluations: tuple[Evaluation, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    calibration_tokens: int = 0
    dropped_rows: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    device: str = "cpu"  # or the GPU's name
    peak_device_memory_bytes: int = 0  # of a GPU
    notes: tuple[str, ...] = Field(default=())

    def artifact(self, variant: str) -> Artifact:
        return next(a for a in self.artifacts if a.variant == variant)

    def variant(self, name: str) -> Variant:
        """As it was made: with the width that its name may leave open."""
        found, artifact = variant(name), self.artifact(name)
        return found.model_copy(update={"bits": found.bits or artifact.nominal_bits})

    def evaluation(self, variant: str) -> Evaluation | None:
        """Under the recipe's first protocol, the one that decides."""
        return next((e for e in self.evaluations if e.variant == variant), None)

    def passed(self, variant: str) -> bool:
        """Measured, and every check of the gate held."""
        checks = [v.passed for v in self.verdicts if v.variant == variant]
        return bool(checks) and all(checks)

    @classmethod
    def read(cls, folder: Path) -> "Report":
        return cls.model_validate_json((folder / "hubquant.json").read_text())
