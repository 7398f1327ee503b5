"""llama.cpp knows a byte-level tokenizer's pre-tokenizer by a name. Here the name is found from what tokenizer.json says."""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, models

from hubquant.errors import BadModel

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_CASED_REST}"
_GPT4O = rf"{_CASED[0]}{_CONTRACTION}?|{_CASED[1]}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_CASED_REST}"
_SEED_CODER = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"

# The regular expressions that split the text one after the other → llama.cpp's name where the tokenizer merges within every
# piece, and where it takes a piece that is a token whole (ignore_merges). From src/llama-vocab.cpp.
PRE_TOKENIZERS: dict[tuple[str, ...], tuple[str | None, str | None]] = {
    (_GPT2,): ("gpt-2", None),
    (_DIGIT, _GPT2): ("smollm", None),
    (_LLAMA3,): ("smaug-bpe", "llama-bpe"),
    (_QWEN2,): ("qwen2", None),
    (_QWEN35,): ("qwen35", None),
    (_TEKKEN,): (None, "tekken"),
    (_GPT4O,): ("gpt-4o", None),
    (_SEED_CODER,): ("seed-coder", None),
}


def pre_tokenizer_name(spec: Mapping[str, Any]) -> str:
    """tokenizer.ggml.pre for a byte-level tokenizer.json. Raises BadModel naming the pre-tokenizer if llama.cpp has none."""
    step = spec.get("pre_tokenizer")
    patterns = () if step is None else _patterns(step)
    names = PRE_TOKENIZERS.get(patterns)
    if names is None:
        known = sorted({name for row in PRE_TOKENIZERS.values() for name in row if name})
        found = json.dumps(spec.get("pre_tokenizer"), ensure_ascii=False)
        raise BadModel(
            f"tokenizer.json: pre-tokenizer {found[:300]} has no name in llama.cpp that is known here; known: {', '.join(known)}"
        )
    model = spec["model"]
    whole = bool(model.get("ignore_merges"))
    name = names[whole]
    if name is None and _every_token_is_reached(model):  # then ignore_merges changes nothing
        name = names[not whole]
    if name is None:
        raise BadModel(f"tokenizer.json: llama.cpp's {names[not whole]} does not exist with ignore_merges = {str(whole).lower()}")
    return name


def _patterns(step: Mapping[str, Any]) -> tuple[str, ...]:
    """The regular expressions of a pre-tokenizer, in order. Raises BadModel for a step that is none."""
    kind = step.get("type")
    if kind == "Sequence":
        return tuple(pattern for inner in step.get("pretokenizers", []) for pattern in _patterns(inner))
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return (_GPT2,) if step.get("use_regex", True) else ()
    if kind == "Digits":
        return (_DIGIT,) if step.get("individual_digits") else (rf"{_DIGIT}+",)
    if kind == "Split":
        keeps_all = (step.get("behavior"), bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))
        pattern = (step.get("pattern") or {}).get("Regex")
        if keeps_all and isinstance(pattern, str):
            return (pattern,)
    found = json.dumps(step, ensure_ascii=False)
    raise BadModel(f"tokenizer.json: pre-tokenizer step {found[:300]} does not exist in llama.cpp")


def _every_token_is_reached(model: Mapping[str, Any]) -> bool:
    """Whether merging alone builds every token of the vocabulary."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    merges = [(str(left), str(right)) for left, right in pairs]
    vocab = model["vocab"]
    reached = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=False))
    return all(encoding.ids == [vocab[token]] for token, encoding in zip(vocab, reached.encode_batch(list(vocab)), strict=True))
