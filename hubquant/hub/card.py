"""The model card of one published repo: front matter and body from a Report and what is carried over from the base. The same Report
gives the same text, byte for byte."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from hubquant.artifact import Artifact, Evaluation, Protocol, Report
from hubquant.hub import manifest
from hubquant.hub.basecard import BaseCard
from hubquant.hub.client import Hub
from hubquant.hub.frontmatter import front_matter
from hubquant.hub.howto import run_parts, usual
from hubquant.hub.markup import Markup, code, escape, link, render
from hubquant.hub.recipelines import recipe_lines, type_of
from hubquant.recipe import Variant

SCHEMA = 1
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CONTEXT_TOKENS = 4096
ALLOWED_KEYS = ("schema", "source_sha", "fingerprint", "recipe", "version")
# Words that the licence asks of whoever passes a derivative on.
NOTICES = {
    "llama2": "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved.",
    "llama3": "Built with Meta Llama 3.",
    "llama3.1": "Built with Llama.",
    "llama3.2": "Built with Llama.",
    "llama3.3": "Built with Llama.",
    "llama4": "Built with Llama.",
    "gemma": "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms.",
}


def build(report: Report, repo_id: str, base: BaseCard, endpoint: str = "https://huggingface.co", quantized_by: str = "") -> str:
    """The README.md of `repo_id`. `report` holds that repo's variants only (`manifest.restrict`)."""
    variants = [report.variant(artifact.variant) for artifact in report.artifacts]
    context = min(CONTEXT_TOKENS, base.context_length or CONTEXT_TOKENS)
    by_size = sorted(report.artifacts, key=lambda artifact: -artifact.size_bytes)
    rows = [_file_row(report, artifact, base, context) for artifact in by_size]
    return render(
        "card.md.jinja",
        {
            "front_matter": Markup(_front_matter(report, repo_id, variants, base, quantized_by)),
            "title": repo_id.split("/")[-1],
            "report": report,
            "base_link": _base_link(report, endpoint),
            "recommended": report.artifact(usual(report, variants).name).main_file if len(variants) > 1 else "",
            "of_gguf": variants[0].format == "gguf",
            "by_sensitivity": any(variant.by_sensitivity for variant in variants),
            "memory_title": f"memory at {context} tokens",
            "memory_note": _memory_note(base, context),
            "rows": rows,
            "protocols": _protocols(report),
            "verdicts": [
                (v.variant, v.check, _number(v.value), _number(v.limit), "yes" if v.passed else f"no: {v.reason}")
                for v in report.verdicts
            ],
            "run": run_parts(report, variants, repo_id),
            "recipe": recipe_lines(report, variants),
            "manifest_name": manifest.NAME,
            "licence": _licence(report, base),
            "attribution": _attribution(report, base),
        },
    )


def validate(text: str, hub: Hub) -> None:
    """Raises HubError with the Hub's reasons if it would refuse the card."""
    hub.validate_card(text)


def hubquant_block(text: str) -> dict[str, str] | None:
    """What a card says of its making (source_sha, fingerprint, recipe, version); None for a card that hubquant did not write."""
    return parse_block(front_matter(text))


def parse_block(metadata: Mapping[str, Any]) -> dict[str, str] | None:
    """The same from the front matter as the Hub parsed it."""
    block = metadata.get("hubquant")
    if not isinstance(block, dict) or block.get("schema") != SCHEMA:
        return None
    return {key: str(block.get(key, "")) for key in ALLOWED_KEYS if key != "schema"}


def block_of(report: Report) -> dict[str, str]:
    """The block that this report's card carries."""
    return {
        "source_sha": report.base.revision,
        "fingerprint": report.base.fingerprint,
        "recipe": report.recipe.sha256,
        "version": report.hubquant_version,
    }


def _front_matter(report: Report, repo_id: str, variants: list[Variant], base: BaseCard, quantized_by: str) -> str:
    metadata: dict[str, Any] = {}
    if _on_hub(report):
        metadata["base_model"] = report.base.repo_id
        metadata["base_model_relation"] = "quantized"
    metadata["quantized_by"] = quantized_by or repo_id.split("/")[0]
    licence = {"license": base.license or report.base.license, "license_name": base.license_name, "license_link": base.license_link}
    metadata.update({key: value for key, value in licence.items() if value})
    metadata["library_name"] = "transformers"
    metadata["pipeline_tag"] = base.pipeline_tag
    if base.languages:
        metadata["language"] = list(base.languages)
    metadata["tags"] = _tags(variants, base)
    metadata["hubquant"] = {"schema": SCHEMA, **block_of(report)}
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000)


def _tags(variants: list[Variant], base: BaseCard) -> list[str]:
    formats = dict.fromkeys(variant.format for variant in variants)
    bits = [f"{count}-bit" for count in sorted({variant.bits for variant in variants})]
    tags = [*formats, *bits, *(["imatrix"] if "gguf" in formats else []), "quantized", "hubquant"]
    if base.conversational:
        tags.append("conversational")
    if base.not_for_all_audiences:
        tags.append("not-for-all-audiences")
    return tags


def _on_hub(report: Report) -> bool:
    """A base from a local folder has no address: the Hub would refuse its name as base_model."""
    return bool(report.base.revision) and REPO_ID.fullmatch(report.base.repo_id) is not None


def _base_link(report: Report, endpoint: str) -> Markup:
    base = report.base
    if not _on_hub(report):
        return Markup(f"{escape(base.repo_id)} (a local model, fingerprint {code(base.fingerprint[:12])})")
    url = f"{endpoint}/{base.repo_id}/tree/{base.revision}"
    return Markup(f"{link(base.repo_id, url)} at revision {code(base.revision[:12])}")


def _file_row(report: Report, artifact: Artifact, base: BaseCard, context: int) -> dict[str, object]:
    evaluation = report.evaluation(artifact.variant)
    weights = [name for name in artifact.files if name.endswith((".gguf", ".safetensors")) and name != "imatrix.gguf"]
    memory = artifact.size_bytes + base.kv_bytes_per_token * context
    return {
        "file": artifact.main_file,
        "more": len(weights) - 1,
        "type": type_of(report.variant(artifact.variant)),
        "bits": f"{artifact.bits_per_weight:.2f}",
        "size": size(artifact.size_bytes),
        "memory": size(memory) if base.kv_bytes_per_token else "unknown",
        "ratio": f"{evaluation.perplexity_ratio:.4f}" if evaluation else "not measured",
        "kld": f"{evaluation.mean_kl:.5f}" if evaluation else "",
        "top1": f"{evaluation.top1_agreement:.2%}" if evaluation else "",
        "sha": artifact.files[artifact.main_file][:12],
    }


def _memory_note(base: BaseCard, context: int) -> str:
    if not base.kv_bytes_per_token:
        return ""
    return f"Memory: the file and 16-bit keys and values of {context} tokens; a runtime's own buffers come on top."


def _protocols(report: Report) -> list[dict[str, object]]:
    """The evaluations grouped by protocol, the deciding one first."""
    protocols = dict.fromkeys(evaluation.protocol for evaluation in report.evaluations)
    return [
        {"name": p.name, "line": protocol_line(p), "rows": [_quality_row(e) for e in report.evaluations if e.protocol == p]}
        for p in protocols
    ]


def protocol_line(protocol: Protocol) -> str:
    """Everything without which a perplexity is not a number."""
    return (
        f"text {protocol.text} (sha256 {protocol.text_sha256[:12]}…), windows of {protocol.window} tokens every {protocol.stride}, "
        f"BOS {protocol.bos}, scored: {protocol.scored}, {protocol.n_tokens:,} tokens scored."
    )


def _quality_row(e: Evaluation) -> tuple[object, ...]:
    kl = (f"{value:.5f}" for value in (e.mean_kl, e.p99_kl, e.p999_kl, e.max_kl))
    return (
        e.variant,
        f"{e.perplexity:.4f}",
        f"{e.base_perplexity:.4f}",
        f"{e.perplexity_ratio:.4f}",
        *kl,
        f"{e.top1_agreement:.2%}",
    )


def _licence(report: Report, base: BaseCard) -> Markup:
    name = base.license_name if base.license == "other" and base.license_name else base.license or report.base.license
    if not name:
        return Markup("The base states no licence; ask its authors what you may do with it.")
    files = f" Its text as published with the base: {', '.join(map(code, base.legal_files))}." if base.legal_files else ""
    return Markup(f"The base's licence holds for these files too: {escape(name)}.{files}")


def _attribution(report: Report, base: BaseCard) -> list[Markup]:
    """The authors of the base, and the words that its licence asks for."""
    lines = [
        Markup(f"The model is the work of the authors of {escape(report.base.repo_id)}; only its number format was changed here.")
    ]
    if notice := NOTICES.get(base.license or report.base.license):
        lines.append(Markup(f"\n{notice}"))
    return lines


def _number(value: float) -> str:
    return f"{value:.5g}"


def size(size_bytes: int) -> str:
    """In decimal units, as disks and the Hub count."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.2f} {unit}"
    return f"{size_bytes / 1e3:.2f} kB"
