"""The lines of a card's "Recipe": method, calibration, what deviates from the rule, versions, cost."""

import re
from collections import Counter

from hubquant.artifact import Artifact, Report, TensorRecord
from hubquant.hub.markup import Markup, code, escape
from hubquant.recipe import ROW, Variant

FOLD = "per-channel scales (AWQ) searched on the Hessian of each input and folded into the layer before it"
FEEDBACK = "codes with GPTQ's error feedback in group-aware activation order, ranges searched under the error that remains"
METHODS = {
    "gptq": f"GPTQ: {FOLD}; {FEEDBACK}",
    "awq": f"AWQ: {FOLD}; {FEEDBACK}",
    "gguf": "GGUF: scales of blocks searched under an importance matrix, the diagonal of each input's Hessian; codes with GPTQ's "
    "error feedback under that Hessian",
}
UNCALIBRATED = "GGUF: scales and codes of blocks searched together, under an importance matrix where one was given"
SIXTEEN_BIT = ("F16", "BF16", "F32")
MAX_NOTES = 12
NUMBERS = re.compile(r"(\d+|\bno)( calibration tokens?)?\b")  # what notes of the same kind differ by


def type_of(variant: Variant) -> str:
    """What a reader calls the variant: Q4_K_M, or auto, 4.5 bits, or int4, group 128, symmetric."""
    if variant.by_sensitivity:
        return f"auto, {budget_of(variant)}"
    if variant.mixture:
        return variant.mixture
    group = "whole rows" if variant.group_size == ROW else f"group {variant.group_size}"
    order = {"static": ", static groups", "actorder": ", act order", "": ""}[variant.order]
    head = ", head too" if variant.head else ""
    return f"int{variant.bits}, {group}, {'symmetric' if variant.symmetric else 'asymmetric'}{order}{head}"


def budget_of(variant: Variant) -> str:
    return f"{variant.size_bytes / 1e9:g} GB" if variant.size_bytes else f"{variant.bits_per_weight:g} bits"


def recipe_lines(report: Report, variants: list[Variant]) -> list[Markup]:
    methods = METHODS if report.calibration_tokens else {**METHODS, "gguf": UNCALIBRATED}
    lines = [f"Method: {methods[name]}." for name in dict.fromkeys(variant.format for variant in variants)]
    for variant in variants:
        artifact = report.artifact(variant.name)
        lines.append(f"{escape(type_of(variant))}: {_types(artifact)}")
        lines += [*_refinement(artifact), *_notes(artifact)]
    lines.append(_calibration(report))
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in sorted(report.versions.items()))
    lines.append(f"Made with hubquant {escape(report.hubquant_version)}{', ' + versions if versions else ''}.")
    cost = f"{report.seconds:.0f} s, {report.peak_memory_bytes / 2**30:.2f} GiB at its peak"
    if report.peak_device_memory_bytes:
        cost += f" and {report.peak_device_memory_bytes / 2**30:.2f} GiB on the {escape(report.device)}"
    lines.append(f"Cost of the pass over all variants: {cost}.")
    lines.append(f"Recipe {code(report.recipe.sha256)}, fingerprint of the base {code(report.base.fingerprint)}.")
    lines += [f"Note: {escape(note)}" for note in report.notes]
    return [Markup(line) for line in lines]


def _calibration(report: Report) -> str:
    plan = report.recipe.calibration
    text = f"{escape(plan.source)}" + (f" (sha256 {code(plan.text_sha256[:12])})" if plan.text_sha256 else "")
    dropped = f"; {report.dropped_rows} non-finite rows dropped" if report.dropped_rows else ""
    windows = f"{plan.windows} windows of {plan.window} tokens"
    experts = "; every expert was shown every token" if plan.all_experts else ""
    return f"Calibration: {text}, {windows}, {report.calibration_tokens:,} tokens in all{experts}{dropped}."


def _types(artifact: Artifact) -> str:
    """How many tensors have which type; those in 16 or 32 bit by name if they are few."""
    counts = Counter(tensor.type for tensor in artifact.tensors)
    text = ", ".join(f"{count} × {escape(kind)}" for kind, count in sorted(counts.items())) or "types in the manifest"
    whole = [tensor.name for tensor in artifact.tensors if tensor.type in SIXTEEN_BIT and not tensor.note]
    return f"{text}; not quantized: {', '.join(map(code, whole))}." if 0 < len(whole) <= MAX_NOTES else f"{text}."


def _refinement(artifact: Artifact) -> list[str]:
    found = artifact.refinement
    if found is None:
        return []
    kl = " → ".join(f"{value:.4g}" for value in found.held_out_kl)
    what = "refined" if found.kept else "as the pass left them: refined they are no better"
    return [f"Scales {what} ({found.steps} steps against the base's output; mean KL on calibration windows held out: {kl})."]


def _notes(artifact: Artifact) -> list[str]:
    """The tensors that deviate from the variant's rule, and why; what is the same but for its numbers, once for all."""
    alike: dict[tuple[str, str], list[TensorRecord]] = {}
    for tensor in artifact.tensors:
        if tensor.note:
            alike.setdefault((tensor.type, NUMBERS.sub("…", tensor.note)), []).append(tensor)
    notes = [_note(tensors) for tensors in alike.values()]
    rest = sum(map(len, list(alike.values())[MAX_NOTES:]))
    return notes[:MAX_NOTES] + ([f"{rest} more tensors deviate; the manifest lists them."] if rest else [])


def _note(alike: list[TensorRecord]) -> str:
    first = alike[0]
    line = f"{code(first.name)} ({escape(first.type)}): {escape(first.note)}"
    return line if len(alike) == 1 else f"{len(alike)} tensors, the first is {line}"
