"""The README's table of what becomes of each causal language model of transformers, from what `make test-architectures` kept."""

import json
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parent / "results" / "architectures" / "transformers.json"
HEADINGS = ["GPTQ, AWQ", "GGUF", "model types", "why not"]
NOT_TRIED = "not tried"
# what the sentences that decline one model have in common
REASONS = {
    "do not follow transformers' experts interface": "weights of three dimensions outside transformers' experts interface",
    "hand each other": "layers hand each other more than hidden states",
    "missing from the checkpoint": "transformers joins what its checkpoint holds in parts",
    "its hidden states are of shape": "hidden states are not one row per token",
    "is not a causal language model": "its text part alone is no causal language model to transformers",
    "its layers share weights": "layers share weights",
    "input_ids is required": "its patches are made from token ids",
    "has dtype I64": "integer weights",
    "cannot be run layer by layer": "weights outside of the layers run between them",
}


def rows() -> list[list[str]]:
    found = _kept()["model_types"]
    packed = [name for name in found if "packed" in found[name]]
    gguf = [name for name in packed if found[name]["gguf"]]
    declined: dict[str, list[str]] = {}
    for name in found:
        if name not in packed:
            declined.setdefault(_reason(found[name]), []).append(name)
    return [
        ["yes", "yes", _listed(gguf), ""],
        ["yes", "no", _listed([name for name in packed if name not in gguf]), "no row among the GGUF families"],
        *([*["—" if reason.startswith(NOT_TRIED) else "no"] * 2, _listed(names), reason] for reason, names in declined.items()),
    ]


def note() -> str:
    kept = _kept()
    return (
        f"The {len(kept['model_types'])} causal language models of transformers {kept['transformers']}, tiny and random: run "
        "layer by layer, scales folded exactly, packed, loaded with the logits of the decoded weights (`make test-architectures`)."
    )


def _kept() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(KEPT.read_text())
    return kept


def _listed(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names)}"


def _reason(found: dict[str, str]) -> str:
    if "not_tiny" in found:
        return f"{NOT_TRIED}: {found['not_tiny']}"
    return next(general for words, general in REASONS.items() if words in found["declined"])
