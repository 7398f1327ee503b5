"""What can be made, by name: Variant, the table VARIANTS, and the Recipe that is hashed into every published card."""

import hashlib
import json
import re
from difflib import get_close_matches
from itertools import takewhile
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hubquant.errors import UsageError
from hubquant.formats.gguf.filetypes import MIXTURES

Format = Literal["gptq", "awq", "gguf"]


class Frozen(BaseModel):
    """A value: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Variant(Frozen):
    """One thing that can be made of a base model.

    `bits` is the nominal width (the gate's limits go by it). GPTQ and AWQ use `group_size` (input channels that share a
    scale) and `symmetric`; GGUF uses `mixture`, llama.cpp's name for its choice of types per tensor, or a name for a choice by
    measured sensitivity, with its budget of `bits_per_weight` for the whole file.
    """

    name: str
    format: Format
    bits: int
    group_size: int = 0
    symmetric: bool = True
    mixture: str = ""
    bits_per_weight: float = 0.0

    @property
    def repo_suffix(self) -> str:
        """What the published repo's name ends in: tiny-llama-AWQ, -GPTQ-Int4, -GGUF."""
        if self.format == "gguf":
            return "GGUF"
        if self.format == "gptq":
            return f"GPTQ-Int{self.bits}"
        return "AWQ" if self.bits == 4 else f"AWQ-Int{self.bits}"

    @property
    def folder(self) -> str:
        """Folder of the artifact below the output folder: GGUF files share one, others have their own."""
        return "gguf" if self.format == "gguf" else self.name


def _of_mixture(mixture: str) -> Variant:
    """gguf-q4_k_m of Q4_K_M: every mixture of llama.cpp is a variant, whose nominal width is the number in its name."""
    bits = int("".join(takewhile(str.isdigit, mixture.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))))
    return Variant(name=f"gguf-{mixture.lower()}", format="gguf", bits=bits, mixture=mixture)


VARIANTS: dict[str, Variant] = {
    "gptq-int4-g128": Variant(name="gptq-int4-g128", format="gptq", bits=4, group_size=128, symmetric=True),
    "awq-int4-g128": Variant(name="awq-int4-g128", format="awq", bits=4, group_size=128, symmetric=False),
    **{v.name: v for v in map(_of_mixture, MIXTURES)},
}

DEFAULT_VARIANTS = ("gptq-int4-g128", "awq-int4-g128", "gguf-q8_0", "gguf-q6_k", "gguf-q4_k_m")
# What is offered to choose from: the default and what else people take often.
OFFERED_VARIANTS = (*DEFAULT_VARIANTS, "gguf-q5_k_m", "gguf-iq4_xs", "gguf-q3_k_m", "gguf-iq2_m", "gguf-auto@4.5bpw")
KNOWN_VARIANTS = (
    f"{', '.join(DEFAULT_VARIANTS)}, every other mixture of llama.cpp (as gguf-iq3_m), and gguf-auto@4.5bpw with any number"
)

_AUTO = re.compile(r"gguf-auto@(\d+(?:\.\d+)?)bpw")
# What a file of that budget is called beside its budget, in a word that the Hub and llama.cpp know.
_CALLED = {
    8.5: "Q8_0", 6.5: "Q6_K", 5.5: "Q5_K_M", 4.5: "Q4_K_M", 4.25: "IQ4_XS",
    3.4: "Q3_K_M", 3.0: "IQ3_XXS", 2.5: "IQ2_S", 2.0: "IQ2_XXS", 1.7: "IQ1_M",
}  # fmt: skip


def variant(name: str) -> Variant:
    """The variant of that name: one of VARIANTS, or gguf-auto@4.5bpw with any budget. Raises UsageError naming similar ones."""
    if name in VARIANTS:
        return VARIANTS[name]
    found = _AUTO.fullmatch(name)
    if found is None:
        alike = _alike(name)
        advice = f"did you mean {' or '.join(alike)}?" if alike else f"there are {KNOWN_VARIANTS}"
        raise UsageError(f"unknown variant {name!r}; {advice}")
    budget = float(found[1])
    if not min(_CALLED) <= budget <= 16:
        raise UsageError(f"{name}: no file has {budget:g} bits per weight; ask for {min(_CALLED):g} to 16")
    called = next(word for bits, word in _CALLED.items() if bits <= budget)
    return Variant(
        name=f"gguf-auto@{budget:g}bpw",
        format="gguf",
        bits=int(budget),
        mixture=f"{budget:g}BPW-{called}_AUTO",
        bits_per_weight=budget,
    )


def _alike(name: str) -> list[str]:
    """At most three names that a person may have meant."""
    known, wanted = list(dict.fromkeys((*OFFERED_VARIANTS, *VARIANTS))), name.strip().lower()
    holding = [k for k in known if wanted in k] if wanted else []
    return (holding or get_close_matches(wanted, known))[:3]


class Calibration(Frozen):
    """Where the calibration tokens come from: `windows` windows of `window` tokens, spread evenly over the text.

    `all_experts`: in mixtures of experts, show every token to every expert, not only to those that the router chose.
    """

    source: str = "prose-calib"
    text_sha256: str = ""
    windows: int = Field(default=64, ge=1)
    window: int = Field(default=512, ge=2)
    all_experts: bool = False


class EvaluationPlan(Frozen):
    """What is scored: the text, and the protocols by name (`gptq-512`, `llamacpp-512`, ...; the first one decides)."""

    source: str = "prose-eval"
    text_sha256: str = ""
    protocols: tuple[str, ...] = ("gptq-512",)
    max_tokens: int = Field(default=16384, ge=2)


class Limit(Frozen):
    """The gate for one bit width: all three must hold."""

    perplexity_ratio: float
    mean_kl: float
    top1_agreement: float


# By nominal bits, wide enough for models of some 0.1 B parameters, which lose most (llama.cpp's Q6_K of SmolLM2-135M: ratio
# 1.012, KL 0.017, top-1 92 %; of Llama-3-8B: 1.004, 0.006, 96 %). Who publishes only large models tightens them in hubquant.toml.
# The limits of 3 bits and less keep out what is broken, not what is weak (llama.cpp's Q3_K_M, Q2_K, IQ2_XXS of Llama-3-8B with
# importance: ratio 1.08, 1.39, 2.26, KL 0.08, 0.33, 0.81; it publishes none for one bit); those of 16 bits are rounding's.
QUALITY_LIMITS: dict[int, Limit] = {
    32: Limit(perplexity_ratio=1.001, mean_kl=0.0005, top1_agreement=0.99),
    16: Limit(perplexity_ratio=1.002, mean_kl=0.001, top1_agreement=0.98),
    8: Limit(perplexity_ratio=1.01, mean_kl=0.01, top1_agreement=0.95),
    6: Limit(perplexity_ratio=1.03, mean_kl=0.03, top1_agreement=0.87),
    5: Limit(perplexity_ratio=1.06, mean_kl=0.06, top1_agreement=0.84),
    4: Limit(perplexity_ratio=1.15, mean_kl=0.15, top1_agreement=0.75),
    3: Limit(perplexity_ratio=1.40, mean_kl=0.40, top1_agreement=0.60),
    2: Limit(perplexity_ratio=3.00, mean_kl=1.20, top1_agreement=0.45),
    1: Limit(perplexity_ratio=6.00, mean_kl=2.00, top1_agreement=0.30),
}


# The Hub takes no larger file. Ollama reads no shards, so nothing is split that need not be.
MAX_FILE_BYTES = 50 * 10**9


class Recipe(Frozen):
    """Everything that decides the published bytes and whether they are published, but for the base and hubquant's version."""

    variants: tuple[str, ...] = DEFAULT_VARIANTS
    calibration: Calibration = Calibration()
    evaluation: EvaluationPlan = EvaluationPlan()
    limits: dict[int, Limit] = Field(default_factory=lambda: dict(QUALITY_LIMITS))
    max_file_bytes: int = Field(default=MAX_FILE_BYTES, gt=0)  # GGUF files that would be larger are split

    @field_validator("variants")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Unknown names raise UsageError naming the known ones; a name given twice is made once."""
        return tuple(dict.fromkeys(variant(name).name for name in names))

    def canonical_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        """The recipe hash: sha256 of the canonical JSON, 64 hex digits."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()
