"""The files of a checkpoint that say how text becomes tokens, read and checked once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from hubquant.errors import BadModel


@dataclass
class TokenizerFiles:
    """tokenizer.json as `spec` and as the `backend` that runs it; `options` of tokenizer_config.json; `config` of config.json;
    `generation` of generation_config.json. Of these only tokenizer.json has to be there."""

    spec: dict[str, Any]
    backend: Tokenizer
    options: dict[str, Any]
    config: Mapping[str, Any]
    generation: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any]) -> "TokenizerFiles":
        """Raises BadModel naming the file that is missing or malformed, and what is wrong with it."""
        spec = _read_json(folder, "tokenizer.json")
        backend = _backend(folder / "tokenizer.json")
        options = _read_json(folder, "tokenizer_config.json", {})
        return cls(spec, backend, options, config, _read_json(folder, "generation_config.json", {}))

    @cached_property
    def model(self) -> dict[str, Any]:
        return dict(self.spec["model"])

    @cached_property
    def added(self) -> list[dict[str, Any]]:
        return list(self.spec.get("added_tokens") or [])

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in self.model.get("merges") or []]
        return [(str(left), str(right)) for left, right in pairs]

    @cached_property
    def ids(self) -> dict[str, int]:
        return {**self.model["vocab"], **{token["content"]: token["id"] for token in self.added}}

    def id_of(self, role: str) -> int | None:
        """The id of the "bos", "eos", "unk" or "pad" token: by text from tokenizer_config.json, else from config.json."""
        text = self.options.get(f"{role}_token")
        text = text.get("content") if isinstance(text, dict) else text
        if isinstance(text, str) and text in self.ids:
            return self.ids[text]
        stated = _ids(self.config.get(f"{role}_token_id"))
        return stated[0] if stated else None

    @cached_property
    def ends_generation(self) -> set[int]:
        """Ids at which the model's authors stop generating."""
        stated = {*_ids(self.generation.get("eos_token_id")), *_ids(self.config.get("eos_token_id"))}
        eos = self.id_of("eos")
        return stated if eos is None else stated | {eos}


def _ids(stated: object) -> list[int]:
    """Token ids of a JSON value that is one id, a list of them, or null."""
    return [i for i in (stated if isinstance(stated, list) else [stated]) if isinstance(i, int) and not isinstance(i, bool)]


def _read_json(folder: Path, name: str, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise BadModel(f"{folder.name} has no {name}; a GGUF file carries its tokenizer") from None
    except (OSError, ValueError) as error:
        raise BadModel(f"{folder.name}/{name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise BadModel(f"{folder.name}/{name} holds no JSON object")
    return content


def _backend(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise BadModel(f"{path.parent.name}/{path.name} is malformed: {error}") from None
