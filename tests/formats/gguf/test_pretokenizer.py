from typing import Any

import pytest

from hubquant.errors import BadModel
from hubquant.formats.gguf.pretokenizer import pre_tokenizer_name

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES_ONLY = {**BYTE_LEVEL, "use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}
RUNS_OF_DIGITS = {"type": "Digits", "individual_digits": False}
PUNCTUATION = {"type": "Punctuation", "behavior": "Contiguous"}
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}


def split(pattern: str, **changes: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **changes}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (BYTE_LEVEL, False, "gpt-2"),
        (sequence(DIGITS, BYTE_LEVEL), False, "smollm"),
        (sequence(split(LLAMA3), BYTES_ONLY), True, "llama-bpe"),
        (sequence(split(LLAMA3), BYTES_ONLY), False, "smaug-bpe"),
        (sequence(split(QWEN2), BYTES_ONLY), False, "qwen2"),
        (sequence(split(QWEN2, behavior="Removed", invert=True), BYTES_ONLY), False, "qwen2"),
        (sequence(sequence(split(QWEN2)), BYTES_ONLY), True, "qwen2"),  # every token is reached by merges
        (sequence(PUNCTUATION, BYTE_LEVEL, RUNS_OF_DIGITS, split("[0-9][0-9][0-9]")), False, "falcon"),
        (
            sequence(split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(CJK), DIGITS, BYTES_ONLY),
            False,
            "deepseek-coder",
        ),
    ],
)
def test_names(pre_tokenizer: dict[str, Any], ignore_merges: bool, name: str) -> None:
    assert pre_tokenizer_name({"pre_tokenizer": pre_tokenizer, "model": {**MODEL, "ignore_merges": ignore_merges}}) == name


@pytest.mark.parametrize(
    ("pre_tokenizer", "message"),
    [
        (None, "null"),
        ({"type": "Whitespace"}, '"Whitespace"'),
        ({**BYTE_LEVEL, "add_prefix_space": True}, '"add_prefix_space": true'),
        (sequence(split(r"\w+"), BYTES_ONLY), r"\\w\+.*known: .*gpt-2, .*qwen2"),
        (sequence(split(LLAMA3, behavior="Removed"), BYTES_ONLY), "Removed"),
        (sequence(RUNS_OF_DIGITS, BYTE_LEVEL), "Digits"),
        (sequence({**PUNCTUATION, "behavior": "Isolated"}, BYTE_LEVEL), "Punctuation"),
        (sequence(split(QWEN2), BYTE_LEVEL), "has no name"),
    ],
)
def test_unknown_ones_are_named(pre_tokenizer: Any, message: str) -> None:
    with pytest.raises(BadModel, match=message):
        pre_tokenizer_name({"pre_tokenizer": pre_tokenizer, "model": MODEL})


def test_ignore_merges_matters_where_merges_do_not_reach_a_token() -> None:
    model = {**MODEL, "vocab": {**MODEL["vocab"], "abb": 3}, "ignore_merges": True}
    with pytest.raises(BadModel, match="gpt-2 does not exist with ignore_merges = true"):
        pre_tokenizer_name({"pre_tokenizer": BYTE_LEVEL, "model": model})
