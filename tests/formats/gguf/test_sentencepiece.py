import json
from pathlib import Path
from typing import Any

import pytest

from hubquant.errors import BadModel
from hubquant.formats.gguf.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, tokenizer_values


def added(token_id: int, content: str, special: bool = True, normalized: bool = False) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return {"id": token_id, "content": content, "special": special, "normalized": normalized, **flags}


def spm(**changes: Any) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "ab", "▁ab", "a", "b", "▁"]
    model = {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": [["a", "b"], ["▁", "ab"]],
        "unk_token": "<unk>",
        "byte_fallback": True,
    }
    return {
        "version": "1.0",
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        "post_processor": None,
        "decoder": None,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "model": {**model, **changes.pop("model", {})},
        **changes,
    }


def values(folder: Path, spec: Any, options: dict[str, Any] | None = None, n_vocab: int = 264) -> dict[str, Any]:
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", **(options or {})}))
    found = tokenizer_values(folder, {}, n_vocab)
    return {key.removeprefix("tokenizer.ggml."): value for key, value in found.items()}


def test_sentencepiece(tmp_path: Path) -> None:
    found = values(tmp_path, spm(), {"bos_token": "<s>", "add_bos_token": True}, n_vocab=265)
    assert found["model"] == "llama"
    assert found["tokens"][259:] == ["ab", "▁ab", "a", "b", "▁", "[PAD264]"]
    assert found["token_type"][:4] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    assert found["token_type"][258:] == [BYTE, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL, UNUSED]
    assert found["scores"][259:261] == [0.0, -1.0]  # the earlier merge wins
    assert len(found["scores"]) == 265
    assert found["add_space_prefix"] is True
    assert found["add_bos_token"] is True


def test_space_in_front(tmp_path: Path) -> None:
    never = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    both = {"type": "Sequence", "normalizers": [prepend, replace]}
    assert values(tmp_path, spm(pre_tokenizer=never), n_vocab=264)["add_space_prefix"] is False
    assert values(tmp_path, spm(normalizer=both, pre_tokenizer=None), n_vocab=264)["add_space_prefix"] is True
    assert values(tmp_path, spm(normalizer=replace, pre_tokenizer=None), n_vocab=264)["add_space_prefix"] is False


@pytest.mark.parametrize(
    ("normalized", "kind", "text"),
    [
        (False, NORMAL, "▁▁"),  # looked for before spaces become ▁: two spaces reach it through merges alone
        (True, USER_DEFINED, "  "),  # looked for afterwards: taken whole
    ],
)
def test_an_added_run_of_spaces(tmp_path: Path, normalized: bool, kind: int, text: str) -> None:
    """Gemma's."""
    gemma = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    spec = spm(
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        pre_tokenizer=gemma,
        added_tokens=[*spm()["added_tokens"], added(264, "▁▁", special=False, normalized=normalized)],
    )
    spec["model"]["vocab"]["▁▁"] = 264
    spec["model"]["merges"].insert(0, ["▁", "▁"])
    found = values(tmp_path, spec, n_vocab=265)
    assert (found["token_type"][264], found["tokens"][264], found["scores"][264]) == (kind, text, 0.0)
    assert found["add_space_prefix"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}}, "spaces"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": False}}, "spaces"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
    ],
)
def test_other_ways_with_spaces_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        values(tmp_path, spm(**changes))


def test_merges_that_are_not_sentencepieces_are_refused(tmp_path: Path) -> None:
    vocab = spm()["model"]["vocab"]
    with pytest.raises(BadModel, match="<0x41>"):
        values(tmp_path, spm(model={"vocab": {t: i for t, i in vocab.items() if t != "<0x41>"}}), n_vocab=264)
    with pytest.raises(BadModel, match=r"\('a', 'bb'\) makes a token but is no merge"):
        more = {**vocab, "bb": 264, "abb": 265}
        merges = [["a", "b"], ["b", "b"], ["ab", "b"], ["▁", "ab"]]
        values(tmp_path, spm(model={"vocab": more, "merges": merges}), n_vocab=266)
    with pytest.raises(BadModel, match="make 'abb' are not together"):
        merges = [["a", "b"], ["b", "b"], ["ab", "b"], ["▁", "ab"], ["a", "bb"]]
        values(tmp_path, spm(model={"vocab": more, "merges": merges}), n_vocab=266)
