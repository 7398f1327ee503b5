import json
from pathlib import Path
from typing import Any

import pytest

from hubquant.errors import BadModel
from hubquant.formats.gguf.pretokenizer import PRE_TOKENIZERS
from hubquant.formats.gguf.tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED, tokenizer_values
from tests.formats.gguf.tokenizerkinds import BYTE_LEVEL_KINDS, SENTENCEPIECE_KINDS, write_tokenizer

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def added(token_id: int, content: str, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": special, **flags}


def gpt2(**changes: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "added_tokens": [added(3, "<s>"), added(4, "</s>"), added(5, "<think>", special=False)],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        **changes,
    }


def template(*single: str) -> dict[str, Any]:
    """A post-processor that puts these special tokens around "$A"."""
    parts = [{"Sequence": {"id": "A", "type_id": 0}} if p == "$A" else {"SpecialToken": {"id": p, "type_id": 0}} for p in single]
    specials = {p: {"id": p, "ids": [3 if p == "<s>" else 4], "tokens": [p]} for p in single if p != "$A"}
    return {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": specials}


def values(
    folder: Path, spec: Any, options: dict[str, Any] | None = None, config: dict[str, Any] | None = None, n_vocab: int = 8
) -> dict[str, Any]:
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    (folder / "tokenizer_config.json").write_text(json.dumps(options or {}))
    found = tokenizer_values(folder, config or {}, n_vocab)
    return {key.removeprefix("tokenizer.ggml."): value for key, value in found.items()}


def test_byte_level(tmp_path: Path) -> None:
    found = values(tmp_path, gpt2(), {"bos_token": "<s>", "eos_token": {"content": "</s>"}}, {"pad_token_id": 4})
    assert found == {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": ["a", "b", "ab", "<s>", "</s>", "<think>", "[PAD6]", "[PAD7]"],
        "token_type": [NORMAL, NORMAL, NORMAL, CONTROL, CONTROL, USER_DEFINED, UNUSED, UNUSED],
        "merges": ["a b"],
        "bos_token_id": 3,
        "eos_token_id": 4,
        "padding_token_id": 4,
        "add_bos_token": False,
        "add_eos_token": False,
    }


def test_merges_may_be_written_as_text(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    assert values(tmp_path, gpt2(model=model))["merges"] == ["a b"]


@pytest.mark.parametrize("text", ["<|fim_prefix|>", "<｜User｜>", "<pad>", "<unused7>", "[@BOS@]"])
def test_tokens_that_look_special_are_kept_out_of_plain_text(tmp_path: Path, text: str) -> None:
    found = values(tmp_path, gpt2(added_tokens=[added(3, text, special=False)]))
    assert found["token_type"][3] == CONTROL


@pytest.mark.parametrize(
    ("post_processor", "options", "bos", "eos"),
    [
        (None, {}, False, False),
        (template("<s>", "$A"), {}, True, False),
        (template("$A", "</s>"), {}, False, True),
        (template("<s>", "$A", "</s>"), {}, True, True),
        (template("<s>", "$A"), {"add_bos_token": False}, False, False),
        (None, {"add_bos_token": True}, True, False),
    ],
)
def test_bos_and_eos(tmp_path: Path, post_processor: Any, options: dict[str, Any], bos: bool, eos: bool) -> None:
    found = values(tmp_path, gpt2(post_processor=post_processor), {"bos_token": "<s>", "eos_token": "</s>", **options})
    assert (found["add_bos_token"], found["add_eos_token"]) == (bos, eos)


def test_a_list_of_eos_tokens_gives_the_first(tmp_path: Path) -> None:
    assert values(tmp_path, gpt2(), config={"eos_token_id": [4, 3]})["eos_token_id"] == 4


@pytest.mark.parametrize(
    ("stops", "eot"),
    [
        (None, 4),  # nothing is said: the most telling name
        ([3], 3),  # the base model's end alone
        ([3, 4], 4),
        ([], 4),
    ],
)
def test_the_end_of_a_turn_is_one_at_which_generation_stops(tmp_path: Path, stops: list[int] | None, eot: int) -> None:
    spec = gpt2(added_tokens=[added(3, "<|endoftext|>"), added(4, "<|im_end|>"), added(5, "<|eom_id|>")])
    if stops is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    found = values(tmp_path, spec)
    assert (found["eot_token_id"], found["eom_token_id"]) == (eot, 5)


def test_added_tokens_beyond_the_embedding_are_left_out(tmp_path: Path) -> None:
    found = values(
        tmp_path, gpt2(added_tokens=[added(3, "<s>"), added(8, "<image_soft_token>")]), {"pad_token": "<image_soft_token>"}
    )
    assert found["tokens"] == ["a", "b", "ab", "<s>", "[PAD4]", "[PAD5]", "[PAD6]", "[PAD7]"]
    assert "padding_token_id" not in found


def _model(**changes: Any) -> dict[str, Any]:
    return {"model": {**gpt2()["model"], **changes}}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "no JSON object"),
        (gpt2(model={"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}, added_tokens=[]), "model 'Unigram'"),
        (gpt2(model={"type": "BPE"}), "malformed"),
        (gpt2(**_model(merges=[["a"]])), "malformed"),
        (gpt2(**_model(merges=["a b c"])), "malformed"),
        (gpt2(**_model(merges=[["a", "c"]])), "malformed"),
        (gpt2(**_model(merges={"a": "b"})), "malformed"),
        (gpt2(**_model(merges=[])), "without merges"),
        (gpt2(**_model(vocab={"a ": 0, "b": 1, "a b": 2}, merges=[["a ", "b"]])), "contains a space"),
        (gpt2(**_model(end_of_word_suffix="</w>")), "end_of_word_suffix"),
        (gpt2(normalizer={"type": "Lowercase"}), "normalizer Lowercase"),
        (gpt2(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
        (gpt2(**_model(vocab={"a": 0, "b": 1, "ab": 9})), "token id 9 does not fit an embedding of 8 rows"),
        (gpt2(**_model(vocab={"a": 0, "b": 1, "ab": 1})), "two tokens have the id 1"),
        (gpt2(added_tokens=[added(3, "a")]), "two tokens have the text 'a'"),
        (gpt2(post_processor=template("<s>", "<s>", "$A")), "post-processor turns"),
    ],
)
def test_what_llama_cpp_would_read_otherwise_is_refused(tmp_path: Path, spec: Any, message: str) -> None:
    options = {"bos_token": "<s>", "eos_token": "</s>"}
    with pytest.raises(BadModel, match=message):
        values(tmp_path, spec, options)


def test_a_name_by_which_llama_cpp_looks_for_tokens(tmp_path: Path) -> None:
    values(tmp_path, gpt2())
    with pytest.raises(BadModel, match=r"'My-Phi3-Merge' for a Phi-3 .* the token <unk>"):
        tokenizer_values(tmp_path, {}, 8, "My-Phi3-Merge")
    phi3 = [added(3 + i, text) for i, text in enumerate(("<s>", "</s>", "<unk>", "<|endoftext|>"))]
    values(tmp_path, gpt2(added_tokens=phi3))
    assert tokenizer_values(tmp_path, {}, 8, "Phi-3-mini")


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"has no tokenizer\.json"):
        tokenizer_values(tmp_path, {}, 8)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadModel, match=r"tokenizer\.json cannot be read"):
        tokenizer_values(tmp_path, {}, 8)


@pytest.mark.parametrize("kind", BYTE_LEVEL_KINDS)
def test_byte_level_tokenizers_of_the_families(tmp_path: Path, kind: str) -> None:
    """What llama.cpp makes of these keys: test_llamacpp_tokens.py."""
    write_tokenizer(kind, tmp_path)
    found = tokenizer_values(tmp_path, {}, 2050)
    expected = BYTE_LEVEL_KINDS[kind]
    types = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"], strict=True))
    assert found["tokenizer.ggml.pre"] == expected.pre
    assert found["tokenizer.ggml.add_bos_token"] == bool(expected.bos)
    assert found["tokenizer.ggml.tokens"][found["tokenizer.ggml.eos_token_id"]] == expected.eos
    assert all(types[token] == CONTROL for token in expected.special)
    assert all(types[token] in (CONTROL, USER_DEFINED) for token in expected.plain)
    assert types["[PAD2049]"] == UNUSED


@pytest.mark.parametrize("kind", SENTENCEPIECE_KINDS)
def test_sentencepiece_tokenizers_of_the_families(tmp_path: Path, kind: str) -> None:
    write_tokenizer(kind, tmp_path)
    found = tokenizer_values(tmp_path, {}, 2050)
    expected = SENTENCEPIECE_KINDS[kind]
    types = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"], strict=True))
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.add_space_prefix"] == expected.adds_space
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert all(types[token] == CONTROL for token in expected.first if token != "<unk>")


def test_every_pre_tokenizer_has_a_family() -> None:
    names = {name for row in PRE_TOKENIZERS.values() for name in row if name}
    assert {kind.pre for kind in BYTE_LEVEL_KINDS.values()} == names
