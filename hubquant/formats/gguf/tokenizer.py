"""tokenizer.json → tokenizer.ggml.*: llama.cpp's two kinds of BPE, byte-level ("gpt2") and SentencePiece's ("llama")."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer

from hubquant.errors import BadModel
from hubquant.formats.gguf.metadata import Value
from hubquant.formats.gguf.pretokenizer import pre_tokenizer_name

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = (
    int(kind)
    for kind in (
        gguf.TokenType.NORMAL,
        gguf.TokenType.UNKNOWN,
        gguf.TokenType.CONTROL,
        gguf.TokenType.USER_DEFINED,
        gguf.TokenType.UNUSED,
        gguf.TokenType.BYTE,
    )
)
_BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
_SPACE = "▁"


@dataclass
class _Tokenizer:
    """The three files of a checkpoint that say how text becomes tokens."""

    spec: dict[str, Any]  # tokenizer.json
    options: dict[str, Any]  # tokenizer_config.json
    config: Mapping[str, Any]  # config.json

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
        stated = self.config.get(f"{role}_token_id")
        stated = stated[0] if isinstance(stated, list) and stated else stated
        return stated if isinstance(stated, int) else None


def tokenizer_values(folder: Path, config: Mapping[str, Any], n_vocab: int) -> dict[str, Value]:
    """tokenizer.* for a checkpoint folder and an embedding of `n_vocab` rows.

    Raises BadModel if the tokenizer is missing, or of a kind that llama.cpp would read differently.
    """
    spec = _read_json(folder, "tokenizer.json")
    backend = _backend(folder / "tokenizer.json")
    tokenizer = _Tokenizer(spec, _read_json(folder, "tokenizer_config.json", {}), config)
    model = tokenizer.model
    if model.get("type") != "BPE":
        raise BadModel(f"tokenizer.json: model {model.get('type')!r} cannot be written as GGUF; only BPE can")
    tokens, types = _tokens(tokenizer, n_vocab)
    values = _sentencepiece(tokenizer, n_vocab) if model.get("byte_fallback") else _byte_level(tokenizer)
    values |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for role, name in names.items():
        found = tokenizer.id_of(role)
        if found is not None and 0 <= found < n_vocab:
            values[f"tokenizer.ggml.{name}_token_id"] = found
    values |= _added_at_the_ends(backend, tokenizer)
    return values | _chat_templates(folder, tokenizer.options)


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


def _tokens(tokenizer: _Tokenizer, n_vocab: int) -> tuple[list[str], list[int]]:
    """Text and type of each id, with placeholders where the embedding has more rows than the tokenizer has tokens."""
    texts = {int(token_id): text for text, token_id in tokenizer.model["vocab"].items()}
    types = dict.fromkeys(texts, NORMAL)
    unknown = tokenizer.model.get("unk_token")
    byte_tokens = set(_BYTE_TOKENS) if tokenizer.model.get("byte_fallback") else set()
    for token_id, text in texts.items():
        types[token_id] = UNKNOWN if text == unknown else BYTE if text in byte_tokens else NORMAL
    for token in tokenizer.added:
        token_id, text = int(token["id"]), str(token["content"])
        if text != unknown:
            types[token_id] = CONTROL if token.get("special") or _looks_special(text) else USER_DEFINED
        # llama.cpp matches these in the raw text, before spaces become ▁
        texts[token_id] = text.replace(_SPACE, " ") if types[token_id] == USER_DEFINED else text
    if max(texts, default=-1) >= n_vocab or min(texts, default=0) < 0:
        raise BadModel(f"tokenizer.json: token id {max(texts)} does not fit an embedding of {n_vocab} rows")
    tokens = [texts.get(i) or f"[PAD{i}]" for i in range(n_vocab)]
    if len(set(tokens)) != len(tokens):  # llama.cpp aborts the process on it
        twice = next(text for text, after in pairwise(sorted(tokens)) if text == after)
        raise BadModel(f"tokenizer.json: two tokens have the text {twice!r}")
    return tokens, [types.get(i, UNUSED) for i in range(n_vocab)]


def _looks_special(text: str) -> bool:
    """Tokens such as <|fim_prefix|> that models forget to mark: llama.cpp's own converter keeps them out of plain text too."""
    return (text.startswith("<|") and text.endswith("|>")) or (text.startswith("<｜") and text.endswith("｜>"))


def _byte_level(tokenizer: _Tokenizer) -> dict[str, Value]:
    normalizer = tokenizer.spec.get("normalizer")
    steps = normalizer.get("normalizers", []) if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    for step in steps:
        if step is not None and step["type"] != "NFC":
            raise BadModel(f"tokenizer.json: normalizer {step['type']} does not exist in llama.cpp")
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if tokenizer.model.get(affix):
            raise BadModel(f"tokenizer.json: {affix} {tokenizer.model[affix]!r} does not exist in llama.cpp")
    if not tokenizer.merges:
        raise BadModel("tokenizer.json: a BPE without merges cannot be written as GGUF")
    if any(" " in part for merge in tokenizer.merges for part in merge):
        raise BadModel("tokenizer.json: a merge contains a space, which byte-level tokens cannot")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer_name(tokenizer.spec),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokenizer.merges],
    }


def _sentencepiece(tokenizer: _Tokenizer, n_vocab: int) -> dict[str, Value]:
    """llama.cpp merges the pair whose result has the highest score, the leftmost of equals. Scores by rank of the merge do
    the same as the merges if each result's merges stand together and every pair that makes a token is among them."""
    vocab = tokenizer.model["vocab"]
    if missing := [token for token in _BYTE_TOKENS if token not in vocab]:
        raise BadModel(f"tokenizer.json: byte_fallback without the token {missing[0]}, which llama.cpp needs")
    rank: dict[str, int] = {}
    pairs = set(tokenizer.merges)
    before = None
    for left, right in tokenizer.merges:
        if left + right != before and left + right in rank:
            raise BadModel(
                f"tokenizer.json: the merges that make {left + right!r} are not together; this is not SentencePiece's order"
            )
        before = left + right
        rank.setdefault(before, len(rank))
    added = {token["content"] for token in tokenizer.added}
    for token in set(vocab) - added - set(_BYTE_TOKENS):
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        if absent := next((s for s in splits if s not in pairs and s[0] in vocab and s[1] in vocab), None):
            raise BadModel(f"tokenizer.json: {absent} makes a token but is no merge; llama.cpp would merge it")
    scores = [-float(len(rank))] * n_vocab
    for token, token_id in vocab.items():
        if token in rank:
            scores[token_id] = -float(rank[token])
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": _adds_space(tokenizer),
    }


def _adds_space(tokenizer: _Tokenizer) -> bool:
    """Whether text gets a space in front. Raises BadModel if spaces are treated in a way that llama.cpp does not know."""
    normalizer, before = tokenizer.spec.get("normalizer"), tokenizer.spec.get("pre_tokenizer")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    prepends = any(step == {"type": "Prepend", "prepend": _SPACE} for step in steps)
    replaces = any(step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == _SPACE for step in steps)
    if len(steps) == prepends + replaces:
        if before is None and replaces:
            return prepends
        if (
            before is not None
            and before["type"] == "Metaspace"
            and before["replacement"] == _SPACE
            and not before.get("split", True)
        ):
            return prepends or before.get("prepend_scheme", "always") != "never"
    found = f"normalizer {json.dumps(normalizer)[:200]} with pre-tokenizer {json.dumps(before)[:200]}"
    raise BadModel(f"tokenizer.json: {found} is not SentencePiece's way with spaces, the only one llama.cpp has here")


def _added_at_the_ends(backend: Tokenizer, tokenizer: _Tokenizer) -> dict[str, Value]:
    """Whether BOS and EOS are added: tokenizer_config.json decides if it says so (as in transformers), else the post-processor."""
    bos, eos = tokenizer.id_of("bos"), tokenizer.id_of("eos")
    if "add_bos_token" in tokenizer.options or "add_eos_token" in tokenizer.options:
        first = bool(tokenizer.options.get("add_bos_token")) and bos is not None
        last = bool(tokenizer.options.get("add_eos_token")) and eos is not None
    else:
        text, whole = (backend.encode("a", add_special_tokens=add).ids for add in (False, True))
        ways = {(f, t): [bos] * f + text + [eos] * t for f in (False, True) for t in (False, True)}
        if whole not in ways.values():
            raise BadModel(f"tokenizer.json: the post-processor turns {text} into {whole}; llama.cpp can add BOS and EOS only")
        first, last = next(way for way, ids in ways.items() if ids == whole)
    return {"tokenizer.ggml.add_bos_token": first, "tokenizer.ggml.add_eos_token": last}


def _chat_templates(folder: Path, options: Mapping[str, Any]) -> dict[str, Value]:
    """tokenizer.chat_template: chat_template.jinja, else tokenizer_config.json's; further ones by their names."""
    templates: dict[str, str] = {}
    stated = options.get("chat_template")
    if isinstance(stated, str):
        templates["default"] = stated
    elif isinstance(stated, list):
        templates |= {str(t["name"]): str(t["template"]) for t in stated if isinstance(t, dict) and {"name", "template"} <= set(t)}
    files = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    for file in files:
        if file.is_file():
            name = "default" if file.parent == folder else file.stem
            templates[name] = file.read_text(encoding="utf-8", errors="replace")
    default = templates.pop("default", None)
    named = {"".join(c if c.isascii() and c.isalnum() else "_" for c in name): text for name, text in templates.items()}
    values: dict[str, Value] = {f"tokenizer.chat_template.{name}": text for name, text in named.items()}
    if named:
        values["tokenizer.chat_templates"] = list(named)
    if default is not None:
        values["tokenizer.chat_template"] = default
    return values
