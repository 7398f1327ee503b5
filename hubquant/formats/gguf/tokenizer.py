"""tokenizer.json → tokenizer.ggml.*: llama.cpp's two kinds of BPE, byte-level ("gpt2") and SentencePiece's ("llama")."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf

from hubquant.errors import BadModel
from hubquant.formats.gguf.chattemplate import chat_template_values
from hubquant.formats.gguf.metadata import Value
from hubquant.formats.gguf.pretokenizer import pre_tokenizer_name
from hubquant.formats.gguf.sentencepiece import BYTE_TOKENS, SPACE, is_made_by_merges, sentencepiece_values
from hubquant.formats.gguf.tokenizerfiles import TokenizerFiles

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

# What chat models end a turn or a message with, the most telling first. Without the key llama.cpp takes whichever of the
# names that it knows comes first in its hash table.
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>")
_END_OF_MESSAGE = ("<|eom_id|>",)

# llama.cpp knows a Phi-3 by general.name, and does not load it without these tokens
_PHI3_NAMES, _PHI3_TOKENS = ("phi-3", "phi3"), ("</s>", "<unk>", "<s>", "<|endoftext|>")


def tokenizer_values(folder: Path, config: Mapping[str, Any], n_vocab: int, name: str = "") -> dict[str, Value]:
    """tokenizer.* for a checkpoint folder and an embedding of `n_vocab` rows. `name`: general.name.

    Raises BadModel if the tokenizer is missing, or of a kind that llama.cpp would read differently.
    """
    files = TokenizerFiles.read(folder, config)
    kind = files.model.get("type")
    if kind != "BPE":
        raise BadModel(f"tokenizer.json: model {kind!r} cannot be written as GGUF; only BPE can")
    tokens, types = _tokens(files, n_vocab)
    if any(part in name.lower() for part in _PHI3_NAMES) and not set(_PHI3_TOKENS) <= set(tokens):
        missing = next(token for token in _PHI3_TOKENS if token not in tokens)
        raise BadModel(f"llama.cpp takes {name!r} for a Phi-3 by its name and does not load one without the token {missing}")
    values = sentencepiece_values(files, n_vocab) if files.model.get("byte_fallback") else _byte_level(files)
    values |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    values |= {key: token_id for key, token_id in _special_ids(files).items() if 0 <= token_id < n_vocab}
    values |= _added_at_the_ends(files)
    return values | chat_template_values(folder, files.options)


def _tokens(files: TokenizerFiles, n_vocab: int) -> tuple[list[str], list[int]]:
    """Text and type of each id, with placeholders where the embedding has more rows than the tokenizer has tokens.

    Added tokens beyond the embedding are left out: the model cannot take them either.
    """
    vocab = files.model["vocab"]
    texts = {int(token_id): text for text, token_id in vocab.items()}
    if len(texts) != len(vocab):
        twice = next(token_id for token_id, after in pairwise(sorted(vocab.values())) if token_id == after)
        raise BadModel(f"tokenizer.json: two tokens have the id {twice}")
    if max(texts, default=-1) >= n_vocab:
        raise BadModel(f"tokenizer.json: token id {max(texts)} does not fit an embedding of {n_vocab} rows")
    unknown = files.model.get("unk_token")
    byte_tokens = set(BYTE_TOKENS) if files.model.get("byte_fallback") else set()
    types = {i: UNKNOWN if text == unknown else BYTE if text in byte_tokens else NORMAL for i, text in texts.items()}
    for token in files.added:
        token_id, text = int(token["id"]), str(token["content"])
        if token_id >= n_vocab or (byte_tokens and is_made_by_merges(token, files)):
            continue
        if text != unknown:
            types[token_id] = CONTROL if token.get("special") or _looks_special(text) else USER_DEFINED
        # llama.cpp matches these in the raw text, before spaces become ▁
        texts[token_id] = text.replace(SPACE, " ") if types[token_id] == USER_DEFINED else text
    tokens = [texts.get(i) or f"[PAD{i}]" for i in range(n_vocab)]
    if len(set(tokens)) != len(tokens):  # llama.cpp aborts the process on it
        doubled = next(text for text, after in pairwise(sorted(tokens)) if text == after)
        raise BadModel(f"tokenizer.json: two tokens have the text {doubled!r}")
    return tokens, [types.get(i, UNUSED) for i in range(n_vocab)]


def _looks_special(text: str) -> bool:
    """Tokens such as <|fim_prefix|> that models forget to mark: llama.cpp's own converter keeps them out of plain text too."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _byte_level(files: TokenizerFiles) -> dict[str, Value]:
    normalizer = files.spec.get("normalizer")
    steps = normalizer.get("normalizers", []) if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    for step in steps:
        if step is not None and step["type"] != "NFC":
            raise BadModel(f"tokenizer.json: normalizer {step['type']} does not exist in llama.cpp")
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if files.model.get(affix):
            raise BadModel(f"tokenizer.json: {affix} {files.model[affix]!r} does not exist in llama.cpp")
    if not files.merges:
        raise BadModel("tokenizer.json: a BPE without merges cannot be written as GGUF")
    if any(" " in part for merge in files.merges for part in merge):
        raise BadModel("tokenizer.json: a merge contains a space, which byte-level tokens cannot")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer_name(files.spec),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in files.merges],
    }


def _special_ids(files: TokenizerFiles) -> dict[str, int]:
    """tokenizer.ggml.*_token_id."""
    found = {
        "bos": files.id_of("bos"),
        "eos": files.id_of("eos"),
        "unknown": files.id_of("unk"),
        "padding": files.id_of("pad"),
        "eot": _first_end(files, _END_OF_TURN),
        "eom": _first_end(files, _END_OF_MESSAGE),
    }
    return {f"tokenizer.ggml.{name}_token_id": token_id for name, token_id in found.items() if token_id is not None}


def _first_end(files: TokenizerFiles, texts: tuple[str, ...]) -> int | None:
    """The id of the first of these tokens that the model has and that its authors end a generation with; if they say so of
    none, of the first that it has."""
    ids = [files.ids[text] for text in texts if text in files.ids]
    return next((token_id for token_id in ids if token_id in files.ends_generation), ids[0] if ids else None)


def _added_at_the_ends(files: TokenizerFiles) -> dict[str, Value]:
    """Whether BOS and EOS are added: tokenizer_config.json decides if it says so (as in transformers), else the post-processor."""
    bos, eos = files.id_of("bos"), files.id_of("eos")
    if "add_bos_token" in files.options or "add_eos_token" in files.options:
        first = bool(files.options.get("add_bos_token")) and bos is not None
        last = bool(files.options.get("add_eos_token")) and eos is not None
    else:
        text, whole = (files.backend.encode("a", add_special_tokens=add).ids for add in (False, True))
        ways = {(f, t): [bos] * f + text + [eos] * t for f in (False, True) for t in (False, True)}
        if whole not in ways.values():
            raise BadModel(f"tokenizer.json: the post-processor turns {text} into {whole}; llama.cpp can add BOS and EOS only")
        first, last = next(way for way, ids in ways.items() if ids == whole)
    return {"tokenizer.ggml.add_bos_token": first, "tokenizer.ggml.add_eos_token": last}
