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

_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"  # the step of that name: runs of Unicode's and ASCII's punctuation
_DIGITS = rf"{_DIGIT}+"
_FALCON = (_PUNCTUATION, _GPT2, _DIGITS, "[0-9][0-9][0-9]")

_HAN_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    "\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED_LETTERS}]+",
    r"\s?[!-/:-~" + "\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _HAN_AND_HANGUL,
    _DIGIT,
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_HANGUL, _DIGIT)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    _HAN_AND_KANA,
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|"""
    r"\s+(?!\S)|\s+",
)

# The regular expressions that split the text one after the other → llama.cpp's name where the tokenizer merges within every
# piece, and where it takes a piece that is a token whole (ignore_merges). From src/llama-vocab.cpp. Several names may stand
# for one splitting there (smollm, starcoder, refact, command-r): here it has one.
PRE_TOKENIZERS: dict[tuple[str, ...], tuple[str | None, str | None]] = {
    (_GPT2,): ("gpt-2", None),
    (_DIGIT, _GPT2): ("smollm", None),
    (_LLAMA3,): ("smaug-bpe", "llama-bpe"),
    (_QWEN2,): ("qwen2", None),
    (_QWEN35,): ("qwen35", None),
    (_TEKKEN,): (None, "tekken"),
    (_GPT4O,): ("gpt-4o", "granite-embed-multi-97m"),
    (_SEED_CODER,): ("seed-coder", None),
    _FALCON: ("falcon", None),
    _DEEPSEEK_LLM: ("deepseek-llm", None),
    _DEEPSEEK_CODER: ("deepseek-coder", None),
    _DEEPSEEK_V3: ("deepseek-v3", None),
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
        return (_DIGIT,) if step.get("individual_digits") else (_DIGITS,)
    if kind == "Punctuation" and step.get("behavior") == "Contiguous":
        return (_PUNCTUATION,)
    if kind == "Split":
        keeps_all = (step.get("behavior"), bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))
        pattern = (step.get("pattern") or {}).get("Regex")
        if keeps_all and isinstance(pattern, str):
            return (pattern.replace("\r", r"\r").replace("\n", r"\n"),)  # DeepSeek writes the characters themselves
    found = json.dumps(step, ensure_ascii=False)
    raise BadModel(f"tokenizer.json: pre-tokenizer step {found[:300]} does not exist in llama.cpp")


def _every_token_is_reached(model: Mapping[str, Any]) -> bool:
    """Whether merging alone builds every token of the vocabulary."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    merges = [(str(left), str(right)) for left, right in pairs]
    vocab = model["vocab"]
    reached = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=False))
    return all(encoding.ids == [vocab[token]] for token, encoding in zip(vocab, reached.encode_batch(list(vocab)), strict=True))
