"""What can be made, by name: Variant, the table VARIANTS, and the Recipe that is hashed into every published card."""

import hashlib
import json
import re
from difflib import get_close_matches
from itertools import takewhile
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hubquant.errors import UsageError
from hubquant.formats.gguf.filetypes import MIXTURES

Format = Literal["gptq", "awq", "gguf"]


class Frozen(BaseModel):
    """A value: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


ROW = -1  # the group size of a whole row, as configs write it


class Variant(Frozen):
    """One thing that can be made of a base model.

    `bits` is the nominal width (the gate's limits go by it; 0 where it follows from a budget of bytes). GPTQ and AWQ use
    `group_size` (input channels that share a scale; ROW: all of them) and `symmetric`, GPTQ also `order` (how channels are taken:
    see quantize/actorder.py) and `head` (the head is packed too). GGUF uses `mixture`, llama.cpp's name for its choice of types
    per tensor. A choice by measured sensitivity has a budget: `bits_per_weight`, of a whole GGUF file or of GPTQ's packed linears,
    or `size_bytes` for all weight files.
    """

    name: str
    format: Format
    bits: int
    group_size: int = 0
    symmetric: bool = True
    order: Literal["", "static", "actorder"] = ""
    head: bool = False
    mixture: str = ""
    bits_per_weight: float = 0.0
    size_bytes: int = 0

    @property
    def by_sensitivity(self) -> bool:
        return bool(self.bits_per_weight or self.size_bytes)

    @property
    def repo_suffix(self) -> str:
        """What the published repo's name ends in: tiny-llama-AWQ, -AWQ-g64, -GPTQ-Int4, -GPTQ-Int4-g32-asym, -GPTQ-Auto-4.5bpw,
        -GGUF. Two variants share one only where they share a folder."""
        if self.format == "gguf":
            return "GGUF"
        name, _, budget = self.name.partition("@")
        if budget:
            return f"GPTQ-Auto-{budget}"
        options = ["", *(o for o in name.split("-")[2:] if o != f"g{USUAL_GROUP}")]
        return ("AWQ" if self.format == "awq" else f"GPTQ-Int{self.bits}") + "-".join(options)

    @property
    def folder(self) -> str:
        """Folder of the artifact below the output folder: GGUF files share one, others have their own."""
        return "gguf" if self.format == "gguf" else self.name


def _of_mixture(mixture: str) -> Variant:
    """gguf-q4_k_m of Q4_K_M: every mixture of llama.cpp is a variant, whose nominal width is the number in its name."""
    bits = int("".join(takewhile(str.isdigit, mixture.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))))
    return Variant(name=f"gguf-{mixture.lower()}", format="gguf", bits=bits, mixture=mixture)


USUAL_GROUP = 128
VARIANTS: dict[str, Variant] = {
    "gptq-int4-g128": Variant(name="gptq-int4-g128", format="gptq", bits=4, group_size=USUAL_GROUP, symmetric=True),
    "awq-int4-g128": Variant(name="awq-int4-g128", format="awq", bits=4, group_size=USUAL_GROUP, symmetric=False),
    **{v.name: v for v in map(_of_mixture, MIXTURES)},
}

DEFAULT_VARIANTS = ("gptq-int4-g128", "awq-int4-g128", "gguf-q8_0", "gguf-q6_k", "gguf-q4_k_m")
# What is offered to choose from: the default and what else people take often.
OFFERED_VARIANTS = (*DEFAULT_VARIANTS, "gguf-q5_k_m", "gguf-iq4_xs", "gguf-q3_k_m", "gguf-iq2_m", "gguf-auto@4.5bpw")
KNOWN_VARIANTS = (
    f"{', '.join(DEFAULT_VARIANTS)}, every other mixture of llama.cpp (as gguf-iq3_m), gguf-auto@4.5bpw and gptq-auto@4.5bpw with "
    "any number (or a size, as @3.2GB), gptq-intB-gG with B = 2, 3, 4, 8 and G = 32, 64, 128 (or -row for -gG) and after it any of "
    "-asym, -static or -actorder, -head, and awq-int4-gG"
)

BITS = (2, 3, 4, 8)
GROUP_SIZES = (32, 64, USUAL_GROUP)
_PACKED = re.compile(r"(gptq|awq)-int(\d+)-(?:g(\d+)|row)((?:-(?:sym|asym|static|actorder|head))*)")
_AUTO = re.compile(r"(gguf|gptq)-auto@(\d+(?:\.\d+)?)(bpw|MB|GB)")
_WITHOUT_UNIT = re.compile(r"(gguf|gptq)-auto@\d+(\.\d+)?")
_UNITS = {"MB": 10**6, "GB": 10**9}
# What a file of that budget is called beside its budget, in a word that the Hub and llama.cpp know.
_CALLED = {
    8.5: "Q8_0", 6.5: "Q6_K", 5.5: "Q5_K_M", 4.5: "Q4_K_M", 4.25: "IQ4_XS",
    3.4: "Q3_K_M", 3.0: "IQ3_XXS", 2.5: "IQ2_S", 2.0: "IQ2_XXS", 1.7: "IQ1_M",
}  # fmt: skip
_BUDGETS = {"gguf": (min(_CALLED), 16.0), "gptq": (float(BITS[0]), 16.0)}


def variant(name: str) -> Variant:
    """The variant of that name: one of VARIANTS, or made up of its parts as KNOWN_VARIANTS says. Raises UsageError with the reason
    why there is none, or naming similar ones."""
    if name in VARIANTS:
        return VARIANTS[name]
    if packed := _PACKED.fullmatch(name):
        return _packed(name, packed[1], int(packed[2]), int(packed[3] or ROW), set(packed[4].split("-")) - {""})
    if auto := _AUTO.fullmatch(name):
        return with_budget(auto[1], float(auto[2]), auto[3])
    if "," in name:
        raise UsageError(f"unknown variant {name!r}; name one variant at a time, and repeat the option for others")
    if _WITHOUT_UNIT.fullmatch(name):
        raise UsageError(f"{name}: a budget has a unit, as {name}bpw (bits per weight), {name}MB or {name}GB")
    alike = _alike(name)
    advice = f"did you mean {' or '.join(alike)}?" if alike else f"there are {KNOWN_VARIANTS}"
    raise UsageError(f"unknown variant {name!r}; {advice}")


def _packed(name: str, form: str, bits: int, group_size: int, options: set[str]) -> Variant:
    if form == "awq" and (bits != 4 or options - {"asym"}):
        raise UsageError(f"{name}: AWQ's layout holds 4 bits with zero points, and no more; take {name.replace('awq', 'gptq', 1)}")
    if bits not in BITS:
        raise UsageError(f"{name}: {bits} bits are not packed; there are {', '.join(map(str, BITS))}")
    if group_size not in (ROW, *GROUP_SIZES):
        raise UsageError(
            f"{name}: no groups of {group_size}; there are {', '.join(map(str, GROUP_SIZES))}, or -row for -g{group_size}"
        )
    if both := next((pair for pair in ({"sym", "asym"}, {"static", "actorder"}) if pair <= options), None):
        raise UsageError(f"{name}: it is either {' or '.join(sorted(both))}")
    if group_size == ROW and options & {"static", "actorder"}:
        raise UsageError(
            f"{name}: a whole row is one group, whose channels are taken by importance in any case; leave the order out"
        )
    order: Literal["", "static", "actorder"] = "static" if "static" in options else "actorder" if "actorder" in options else ""
    symmetric = form == "gptq" and "asym" not in options
    asked = {
        "asym": form == "gptq" and not symmetric,
        "static": order == "static",
        "actorder": order == "actorder",
        "head": "head" in options,
    }
    parts = [
        form,
        f"int{bits}",
        "row" if group_size == ROW else f"g{group_size}",
        *(option for option, wanted in asked.items() if wanted),
    ]
    known = VARIANTS.get("-".join(parts))
    return known or Variant(
        name="-".join(parts), format="awq" if form == "awq" else "gptq", bits=bits, group_size=group_size, symmetric=symmetric,
        order=order, head=asked["head"],
    )  # fmt: skip


def with_budget(form: str, budget: float, unit: str) -> Variant:
    """gguf-auto@4.5bpw of "gguf", 4.5, "bpw"; `unit` may be MB or GB too. Raises UsageError for a budget that nothing keeps."""
    name = f"{form}-auto@{budget:g}{unit}"
    size_bytes = 0 if unit == "bpw" else round(budget * _UNITS[unit])
    found = Variant(
        name=name,
        format="gguf" if form == "gguf" else "gptq",
        bits=0,
        group_size=0 if form == "gguf" else USUAL_GROUP,
        size_bytes=size_bytes,
    )
    return found if size_bytes else within(found, budget)


def within(variant: Variant, bits_per_weight: float) -> Variant:
    """The variant by sensitivity with its budget in bits per weight. Raises UsageError for one that nothing keeps."""
    least, most = _BUDGETS[variant.format]
    if not least <= bits_per_weight <= most:
        raise UsageError(f"{variant.name}: nothing has {bits_per_weight:.4g} bits per weight; ask for {least:g} to {most:g}")
    budget = variant.name.partition("@")[2].upper()
    called = next((word for bits, word in _CALLED.items() if bits <= bits_per_weight))
    update = {"bits": int(bits_per_weight), "bits_per_weight": bits_per_weight}
    return variant.model_copy(update=update | ({"mixture": f"{budget}-{called}_AUTO"} if variant.format == "gguf" else {}))


def _alike(name: str) -> list[str]:
    """At most three names that a person may have meant: first of what people take often, then of all that are packed."""
    wanted = name.strip().lower()
    groups = (*(f"g{size}" for size in reversed(GROUP_SIZES)), "row")
    packed = [f"gptq-int{b}-{g}{o}" for b in reversed(BITS) for g in groups for o in ("", "-asym", "-actorder")]
    packed += [f"awq-int4-{g}" for g in groups]
    of_lists = [list(dict.fromkeys(known)) for known in ((*OFFERED_VARIANTS, "gptq-auto@4.5bpw", *VARIANTS), packed)]
    holding = [[k for k in known if wanted in k] for known in of_lists] if wanted else []
    return next((found[:3] for found in (*holding, *(get_close_matches(wanted, known) for known in of_lists)) if found), [])


class Override(Frozen):
    """Other settings for the linears whose published name `pattern` matches from its start; `bits` 0 leaves them in 16 bit."""

    pattern: str
    bits: int
    group_size: int = USUAL_GROUP
    symmetric: bool = True


def override(text: str) -> Override:
    """Of "REGEX=int8-g64", in the words of GPTQ variants, or "REGEX=16". Raises UsageError."""
    pattern, equals, setting = text.rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"override {text!r} is not of the form REGEX=int8-g64 or REGEX=16")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"override {text!r}: {pattern!r} is no regular expression: {error}") from None
    if setting == "16":
        return Override(pattern=pattern, bits=0)
    found = variant(f"gptq-{setting}")
    if found.order or found.head or found.by_sensitivity:
        raise UsageError(f"override {text!r}: {setting!r} is no setting of one module; say bits, group and -asym, as int8-g64")
    return Override(pattern=pattern, bits=found.bits, group_size=found.group_size, symmetric=found.symmetric)


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


HELD_OUT = 8  # one calibration window in so many is not learned from when scales are refined

# The Hub takes no larger file. Ollama reads no shards, so nothing is split that need not be.
MAX_FILE_BYTES = 50 * 10**9


class Recipe(Frozen):
    """Everything that decides the published bytes and whether they are published, but for the base and hubquant's version."""

    variants: tuple[str, ...] = DEFAULT_VARIANTS
    calibration: Calibration = Calibration()
    evaluation: EvaluationPlan = EvaluationPlan()
    limits: dict[int, Limit] = Field(default_factory=lambda: dict(QUALITY_LIMITS))
    max_file_bytes: int = Field(default=MAX_FILE_BYTES, gt=0)  # GGUF files that would be larger are split
    dynamic: tuple[str, ...] = ()  # GPTQ: other settings for some linears, as REGEX=int8-g64 or REGEX=16; the first that matches
    refine: int = Field(default=0, ge=0)  # steps of learning the scales after the pass

    @field_validator("variants")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Unknown names raise UsageError naming the known ones; a name given twice is made once."""
        return tuple(dict.fromkeys(variant(name).name for name in names))

    @field_validator("dynamic")
    @classmethod
    def _readable(cls, overrides: tuple[str, ...]) -> tuple[str, ...]:
        for text in overrides:
            override(text)
        return overrides

    @model_validator(mode="after")
    def _can_be_refined(self) -> Self:
        if self.refine and self.calibration.windows < HELD_OUT:
            raise UsageError(
                f"to refine takes at least {HELD_OUT} calibration windows, not {self.calibration.windows}: one is held out"
            )
        return self

    def canonical_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        """The recipe hash: sha256 of the canonical JSON, 64 hex digits."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()
