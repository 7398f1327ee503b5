import json
from pathlib import Path

import pytest

from hubquant.hub.basecard import BaseCard, kv_bytes_per_token


def folder(tmp_path: Path, front: str, config: object = None) -> Path:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_what_is_carried_over(tmp_path: Path) -> None:
    front = "license: other\nlicense_name: x-1\nlicense_link: LICENSE\nlanguage: [en, zh-Hant]\ntags: [not-for-all-audiences]"
    for name in ("LICENSE", "NOTICE.txt", "USE_POLICY.md", "OTHER"):
        (tmp_path / name).write_text("text")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    card = BaseCard.read(folder(tmp_path, front))
    assert (card.license, card.license_name, card.license_link) == ("other", "x-1", "LICENSE")
    assert card.languages == ("en", "zh-Hant")
    assert card.not_for_all_audiences and card.conversational
    assert card.legal_files == ("LICENSE", "NOTICE.txt", "USE_POLICY.md")


def test_a_chat_template_in_the_tokenizer_config(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
    assert BaseCard.read(tmp_path).conversational
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert not BaseCard.read(tmp_path).conversational


@pytest.mark.parametrize(
    "front",
    [
        "license: {a: b}", "license: [[x]]", 'license: "a\\nb"', "license: <script>", "language: [1, {}]", "pipeline_tag: [x]",
        'pipeline_tag: "Text Generation!"', "license_name: [x]", f"license_link: {'x' * 999}", "tags: 7", "- not a mapping",
    ],
)  # fmt: skip
def test_what_has_another_shape_is_left_out(tmp_path: Path, front: str) -> None:
    assert BaseCard.read(folder(tmp_path, front, config=["not", "a", "mapping"])) == BaseCard()


def test_a_list_of_licences_counts_as_its_first(tmp_path: Path) -> None:
    assert BaseCard.read(folder(tmp_path, "license: [MIT, apache-2.0]")).license == "mit"


def test_memory_of_keys_and_values() -> None:
    llama8b = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
    assert kv_bytes_per_token(llama8b) == 131072  # 128 KiB, as known
    assert kv_bytes_per_token({"text_config": llama8b}) == 131072
    assert kv_bytes_per_token({**llama8b, "head_dim": 256}) == 262144
    assert kv_bytes_per_token({"num_hidden_layers": "32"}) == 0
