"""What follows from the files of one commit: card, config, tags, base models, parameter counts."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hubquant.hub.local import cards
from hubquant.hub.local.commits import Commit
from hubquant.hub.local.headers import gguf_summary, safetensors_parameters
from hubquant.hub.local.storage import Store

CARD_LIMIT_BYTES = 2**20
JSON_LIMIT_BYTES = 16 * 2**20
PIPELINE_BY_ARCHITECTURE = {
    "ForCausalLM": "text-generation",
    "ForConditionalGeneration": "image-text-to-text",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForQuestionAnswering": "question-answering",
}
SHOWN_CONFIG = ("architectures", "model_type", "auto_map", "quantization_config")
SHOWN_TOKENIZER = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")


@dataclass(frozen=True)
class Derived:
    card: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    library: str | None = None
    pipeline: str | None = None
    base_models: tuple[str, ...] = ()
    relation: str | None = None
    tags: tuple[str, ...] = ()
    safetensors: dict[str, Any] | None = None
    gguf: dict[str, Any] | None = None


class Reader:
    """Reads the files of one commit; a missing or damaged one counts as absent."""

    def __init__(self, store: Store, commit: Commit) -> None:
        self._store = store
        self.files = commit.files

    def text(self, path: str, limit_bytes: int) -> str | None:
        entry = self.files.get(path)
        return None if entry is None else self._store.read(entry.sha256, limit_bytes).decode("utf-8", "replace")

    def json(self, path: str) -> dict[str, Any] | None:
        entry = self.files.get(path)
        if entry is None or entry.size > JSON_LIMIT_BYTES:
            return None
        try:
            value = json.loads(self.text(path, JSON_LIMIT_BYTES) or "")
        except ValueError:
            return None
        return cards.plain(value) if isinstance(value, dict) else None

    def card(self) -> dict[str, Any]:
        try:
            return cards.front_matter(self.text("README.md", CARD_LIMIT_BYTES) or "")
        except cards.BadFrontMatter:
            return {}

    def safetensors(self) -> dict[str, Any] | None:
        """Parameters per dtype over model.safetensors or all shards of the index."""
        index = self.json("model.safetensors.index.json")
        names = {"model.safetensors"}
        if index is not None and isinstance(index.get("weight_map"), dict):
            names = {str(name) for name in index["weight_map"].values()}
        counts: Counter[str] = Counter()
        try:
            for name in names:
                counts.update(safetensors_parameters(self._store.blob_path(self.files[name].sha256)))
        except (KeyError, ValueError):
            return None
        return {"parameters": dict(counts), "total": sum(counts.values())}

    def gguf(self) -> dict[str, Any] | None:
        names = [
            path for path in self.files if path.endswith(".gguf") and "/" not in path and not path.startswith(("imatrix", "mmproj"))
        ]
        for name in names:
            try:
                return gguf_summary(self._store.blob_path(self.files[name].sha256))
            except ValueError:
                continue
        return None


def derive(store: Store, commit: Commit) -> Derived:
    reader = Reader(store, commit)
    card, config = reader.card(), _config(reader)
    library = card.get("library_name") or _library(reader, config)
    pipeline = card.get("pipeline_tag") or _pipeline(config)
    base_models = tuple(cards.as_list(card.get("base_model")))
    relation = _relation(card, reader) if base_models else None
    safetensors, gguf = reader.safetensors(), reader.gguf()
    tags = _tags(card, config, library, pipeline, reader)
    for base in base_models:
        tags += [f"base_model:{base}", f"base_model:{relation}:{base}"]
    return Derived(card, config, library, pipeline, base_models, relation, tuple(dict.fromkeys(tags)), safetensors, gguf)


def _config(reader: Reader) -> dict[str, Any] | None:
    config = reader.json("config.json")
    if config is None:
        return None
    shown = {key: config[key] for key in SHOWN_CONFIG if key in config}
    tokenizer = reader.json("tokenizer_config.json") or {}
    shown["tokenizer_config"] = {key: tokenizer[key] for key in SHOWN_TOKENIZER if key in tokenizer}
    return shown


def _library(reader: Reader, config: dict[str, Any] | None) -> str | None:
    if config is not None and ("model_type" in config or "architectures" in config):
        return "transformers"
    return "gguf" if any(path.endswith(".gguf") for path in reader.files) else None


def _architectures(config: dict[str, Any] | None) -> list[str]:
    return cards.as_list((config or {}).get("architectures"))


def _pipeline(config: dict[str, Any] | None) -> str | None:
    for architecture in _architectures(config):
        for ending, task in PIPELINE_BY_ARCHITECTURE.items():
            if architecture.endswith(ending):
                return task
    return None


def _relation(card: dict[str, Any], reader: Reader) -> str:
    """The card's own word; without one the Hub guesses, and a quantized repo lands under the finetunes."""
    named = card.get("base_model_relation")
    if named in cards.RELATIONS:
        return str(named)
    if "adapter_config.json" in reader.files:
        return "adapter"
    return "merge" if isinstance(card.get("base_model"), list) and len(card["base_model"]) > 1 else "finetune"


def _tags(
    card: dict[str, Any], config: dict[str, Any] | None, library: str | None, pipeline: str | None, reader: Reader
) -> list[str]:
    tags = [tag for tag in (library,) if tag]
    for ending, tag in ((".safetensors", "safetensors"), (".gguf", "gguf"), (".onnx", "onnx"), ("pytorch_model.bin", "pytorch")):
        if any(path.endswith(ending) for path in reader.files):
            tags.append(tag)
    if config is not None and isinstance(config.get("model_type"), str):
        tags.append(config["model_type"])
    if pipeline:
        tags.append(pipeline)
    tags += cards.as_list(card.get("tags"))
    if (config is not None and "chat_template" in config["tokenizer_config"]) or "chat_template.jinja" in reader.files:
        tags.append("conversational")
    tags += cards.as_list(card.get("language"))
    tags += [f"dataset:{name}" for name in cards.as_list(card.get("datasets"))]
    tags += [f"license:{name}" for name in cards.as_list(card.get("license"))]
    quantization = (config or {}).get("quantization_config")
    if isinstance(quantization, dict):
        if isinstance(quantization.get("bits"), int):
            tags.append(f"{quantization['bits']}-bit")
        if isinstance(quantization.get("quant_method"), str):
            tags.append(quantization["quant_method"])
    return [*tags, "region:us"]
