import pytest

from hubquant.hub.local import cards


def card(metadata: str) -> str:
    return f"---\n{metadata}\n---\n# Title\n"


def test_front_matter_and_body() -> None:
    text = card("license: mit\ndate: 2026-01-02\nloss: .inf\nnested: {1: [a, .nan]}")
    assert cards.front_matter(text) == {"license": "mit", "date": "2026-01-02", "loss": "inf", "nested": {"1": ["a", "nan"]}}
    assert cards.body(text) == "# Title\n"
    assert cards.front_matter("# No metadata\n---\na: b\n---\n") == {}
    assert cards.front_matter("---\n---\ntext") == {}
    assert cards.front_matter("---\r\nlicense: mit\r\n---\r\ntext") == {"license": "mit"}


@pytest.mark.parametrize("metadata", ["a: [", "- a\n- b", "a: b: c", "when: 2026-99-99T99:99:99Z"])
def test_bad_front_matter(metadata: str) -> None:
    with pytest.raises(cards.BadFrontMatter, match="YAML"):
        cards.front_matter(card(metadata))
    assert cards.check(card(metadata))[0]


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ("license: freeware", "license"),
        ("base_model: /home/me/model", "base_model"),
        ("base_model: ./model", "base_model"),
        ("datasets: [a/b/c]", "datasets"),
        ("base_model_relation: copy", "base_model_relation"),
        ("language: English", "language"),
        ("pipeline_tag: [x]", "pipeline_tag"),
        ("tags: one", "tags"),
        ("tags: [1]", "tags"),
        ("model-index: {}", "model-index"),
        ("model-index: [{results: []}]", "model-index[0].name"),
        ("model-index: [{name: m, results: [{task: {type: 3}, metrics: []}]}]", "model-index[0].results[0].task.type"),
        ("model-index: [{name: m, results: [{metrics: [{value: 3}]}]}]", "model-index[0].results[0].metrics"),
    ],
)
def test_errors_name_the_field(metadata: str, named: str) -> None:
    errors, _ = cards.check(card(metadata))
    assert len(errors) == 1 and named in errors[0]


def test_a_good_card_has_no_errors() -> None:
    good = """license: [apache-2.0]
language: [en, zh-Hans, code]
base_model: [demo-org/base, gpt2]
base_model_relation: quantized
datasets: wikitext
tags: [awq]
library_name: transformers
pipeline_tag: text-generation
model-index:
- name: m
  results:
  - task: {type: text-generation}
    dataset: {name: d, type: wikitext}
    metrics: [{type: perplexity, value: 3.0}]"""
    assert cards.check(card(good)) == ([], [])
    assert cards.check("# no metadata")[0] == [] and cards.check("# no metadata")[1]
