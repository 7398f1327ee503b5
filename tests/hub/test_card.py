import json
import re
from pathlib import Path

import pytest

from hubquant.artifact import Base, Refinement, Report
from hubquant.hub import card, howto, manifest
from hubquant.hub.basecard import BaseCard
from hubquant.hub.client import Hub
from hubquant.hub.frontmatter import front_matter

GGUF = ("gguf-q8_0", "gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m")
BASE = BaseCard(
    license="apache-2.0", languages=("en",), not_for_all_audiences=True, conversational=True, kv_bytes_per_token=131072,
    context_length=8192, legal_files=("LICENSE",),
)  # fmt: skip


def build(report: Report, *variants: str, base: BaseCard = BASE, repo_id: str = "bot/tiny-llama-X") -> str:
    return card.build(manifest.restrict(report, variants), repo_id, base)


def table(text: str, header: str) -> list[list[str]]:
    """The cells of the rows of the first table whose header begins so, split as a Markdown reader does."""
    lines = text[text.index(header) :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_front_matter(report: Report) -> None:
    metadata = front_matter(build(report, *GGUF))
    assert list(metadata) == [
        "base_model", "base_model_relation", "quantized_by", "license", "library_name", "pipeline_tag", "language", "tags",
        "hubquant",
    ]  # fmt: skip
    assert metadata["base_model"] == "demo-org/tiny-llama"
    assert metadata["base_model_relation"] == "quantized"
    assert metadata["quantized_by"] == "bot"
    assert metadata["tags"] == [
        "gguf", "4-bit", "5-bit", "6-bit", "8-bit", "imatrix", "quantized", "hubquant", "conversational", "not-for-all-audiences",
    ]  # fmt: skip
    assert metadata["hubquant"] == {"schema": 1, **card.block_of(report)}


def test_a_plain_base_and_a_licence_with_a_name(report: Report) -> None:
    base = BaseCard(license="other", license_name="x-1", license_link="LICENSE")
    metadata = front_matter(build(report, "awq-int4-g128", base=base))
    assert metadata["tags"] == ["awq", "4-bit", "quantized", "hubquant"]
    assert (metadata["license"], metadata["license_name"], metadata["license_link"]) == ("other", "x-1", "LICENSE")
    assert "language" not in metadata


def test_the_same_report_gives_the_same_text(report: Report) -> None:
    again = Report.model_validate_json(report.model_dump_json())
    assert build(report, *GGUF) == build(again, *GGUF)


def test_the_parts_stand_in_order(report: Report) -> None:
    headings = re.findall(r"^#+ (.*)$", build(report, "awq-int4-g128"), re.M)
    assert headings == [
        "tiny-llama-X", "Which file?", "Quality", "Run it", "Recipe", "Limits and security", "Licence and attribution",
    ]  # fmt: skip


def test_which_file(report: Report) -> None:
    text = build(report, *GGUF)
    rows = table(text, "| file | type")
    assert [row[1] for row in rows] == ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]
    artifact = report.artifact("gguf-q4_k_m")
    memory = f"{(artifact.size_bytes + 4096 * 131072) / 1e6:.2f} MB"
    sha = artifact.files["tiny-Q4_K_M.gguf"][:12]
    assert rows[3] == ["`tiny-Q4_K_M.gguf`", "Q4_K_M", "4.25", "2.00 kB", memory, "1.0250", "0.01230", "91.30%", f"`{sha}`"]
    assert "Take `tiny-Q4_K_M.gguf` if in doubt" in text
    assert "memory at 4096 tokens" in text


def test_shards_are_counted_and_unknown_memory_is_said(report: Report) -> None:
    artifact = report.artifact("awq-int4-g128")
    files = {"model-00001-of-00002.safetensors": "1" * 64, "model-00002-of-00002.safetensors": "2" * 64, "config.json": "3" * 64}
    report = report.model_copy(update={"artifacts": (artifact.model_copy(update={"files": files}),)})
    (row,) = table(build(report, "awq-int4-g128", base=BaseCard()), "| file | type")
    assert row[0] == "`model-00001-of-00002.safetensors` and 1 more"
    assert row[4] == "unknown"


def test_numbers_come_with_their_protocol(report: Report) -> None:
    text = build(report, "gptq-int4-g128")
    assert (
        "Protocol **gptq-512**: text prose-eval (sha256 eeeeeeeeeeee…), windows of 512 tokens every 512, BOS as tokenized, "
        "scored: all, 16,352 tokens scored." in text
    )
    assert table(text, "| variant | perplexity") == [
        ["gptq-int4-g128", "61.5000", "60.0000", "1.0250", "0.01230", "0.20000", "0.50000", "1.25000", "91.30%"]
    ]
    assert table(text, "| variant | check") == [["gptq-int4-g128", "perplexity ratio", "1.025", "1.15", "yes"]]


def test_two_protocols_are_kept_apart(report: Report) -> None:
    (first,) = manifest.restrict(report, ["gguf-q8_0"]).evaluations
    second = first.model_copy(update={"protocol": first.protocol.model_copy(update={"name": "llamacpp-512"}), "perplexity": 70.0})
    text = build(report.model_copy(update={"evaluations": (first, second)}), "gguf-q8_0")
    assert text.index("**gptq-512**") < text.index("61.5000") < text.index("**llamacpp-512**") < text.index("70.0000")


def test_a_report_that_was_not_measured_says_so(report: Report) -> None:
    text = build(report.model_copy(update={"evaluations": (), "verdicts": ()}), "gguf-q8_0")
    assert "Not measured." in text
    assert "not measured" in table(text, "| file | type")[0]


def test_what_became_of_the_scales_is_said(report: Report) -> None:
    def with_scales(before: float, after: float) -> str:
        refinement = Refinement(steps=32, held_out_kl=(before, after))
        artifacts = tuple(a.model_copy(update={"refinement": refinement}) for a in report.artifacts)
        return build(report.model_copy(update={"artifacts": artifacts}), "awq-int4-g128")

    assert "Scales" not in build(report, "awq-int4-g128")
    assert "Scales refined (32 steps against the base's output" in with_scales(0.01275, 0.01075)
    assert "0.01275 → 0.01075" in with_scales(0.01275, 0.01075)
    assert "Scales as the pass left them: refined they are no better" in with_scales(0.01, 0.02)


def test_error_feedback_is_claimed_only_where_there_was_calibration(report: Report) -> None:
    assert "error feedback" in build(report, "gguf-q4_k_m")
    assert "error feedback" not in build(report.model_copy(update={"calibration_tokens": 0}), "gguf-q4_k_m")


def test_the_recipe_names_what_deviates(report: Report) -> None:
    artifact = report.artifact("awq-int4-g128")
    odd = artifact.tensors[0].model_copy(update={"name": "layer.3.down", "type": "F16", "note": "only 3 tokens seen"})
    report = report.model_copy(update={"artifacts": (artifact.model_copy(update={"tensors": (*artifact.tensors, odd)}),)})
    text = build(report, "awq-int4-g128")
    assert "int4, group 128, asymmetric: 2 × F16, 1 × int4-g128; not quantized: `lm_head.weight`." in text
    assert "`layer.3.down` (F16): only 3 tokens seen" in text
    assert "64 windows of 512 tokens, 32,768 tokens in all" in text
    assert "torch 2.13.0, transformers 5.23.0" in text


def test_what_deviates_alike_is_said_once(report: Report) -> None:
    artifact = report.artifacts[0]
    tensors = tuple(
        artifact.tensors[0].model_copy(
            update={"name": f"experts.{n}.down", "note": f"rounded to nearest: {n} tokens, 64 are needed"}
        )
        for n in range(30)
    )
    changed = report.model_copy(update={"artifacts": (artifact.model_copy(update={"tensors": tensors}),)})
    lines = [line for line in build(changed, artifact.variant).splitlines() if "rounded to nearest" in line]
    assert len(lines) == 1 and "30 tensors, the first is `experts.0.down`" in lines[0] and "0 tokens, 64 are needed" in lines[0]


def test_experts_by_how_many_tokens_they_lacked_are_said_once(report: Report) -> None:
    artifact = report.artifacts[0]
    notes = [f"rounded to nearest: {n} reached it, 8 are needed" for n in ("2 calibration tokens", "1 calibration token")]
    notes.append("rounded to nearest: no calibration token reached it, 4 are needed")
    tensors = tuple(artifact.tensors[0].model_copy(update={"name": f"experts.{n}", "note": note}) for n, note in enumerate(notes))
    changed = report.model_copy(update={"artifacts": (artifact.model_copy(update={"tensors": tensors}),)})
    assert build(changed, artifact.variant).count("rounded to nearest") == 1


def renamed(report: Report, *names: tuple[str, str]) -> Report:
    """The report with variants under other names: (the one there is, the one it becomes)."""
    artifacts = [
        report.artifact(old).model_copy(update={"variant": new, "size_bytes": 1000 * n, "files": {f"t-{n}.gguf": "0" * 64}})
        for n, (old, new) in enumerate(names, 1)
    ]
    return report.model_copy(update={"artifacts": tuple(artifacts), "evaluations": (), "verdicts": ()})


@pytest.mark.parametrize(
    ("made", "taken"),
    [
        (("gguf-iq2_m", "gguf-iq4_xs", "gguf-q8_0"), "t-2.gguf"),
        (("gguf-iq2_m", "gguf-iq3_m"), "t-2.gguf"),
        (("gguf-iq3_m", "gguf-auto@4.5bpw", "gguf-f16"), "t-2.gguf"),
        (("gguf-iq4_xs", "gguf-q4_k_m"), "t-2.gguf"),
    ],
)
def test_the_file_to_take_is_the_one_of_the_commands(report: Report, made: tuple[str, ...], taken: str) -> None:
    text = build(renamed(report, *zip(GGUF, made, strict=False)), *made)
    assert f"Take `{taken}` if in doubt" in text and f'gguf_file="{taken}"' in text
    assert [row[0] for row in table(text, "| file | type")] == [f"`t-{n}.gguf`" for n in range(len(made), 0, -1)], "largest first"


@pytest.mark.parametrize(
    ("architecture", "reads"),
    [("LlamaForCausalLM", True), ("GPT2LMHeadModel", True), ("qwen2", True), ("Qwen3MoeForCausalLM", False), ("", False)],
)
def test_transformers_is_named_where_it_makes_the_same_model(report: Report, architecture: str, reads: bool) -> None:
    base = report.base.model_copy(update={"architecture": architecture})
    text = build(report.model_copy(update={"base": base}), "gguf-q8_0")
    assert ("gguf_file=" in text) == reads and "llama-cli -hf" in text


def test_what_transformers_reads_was_measured() -> None:
    kept = json.loads((Path(__file__).parents[1] / "benchmarks/results/families/gguf.json").read_text())["families"]
    assert all(kept[family]["from_pretrained"] for family in howto.READ_BY_TRANSFORMERS)


def test_a_choice_by_sensitivity_is_explained(report: Report) -> None:
    text = build(renamed(report, ("gguf-q4_k_m", "gguf-auto@4.5bpw")), "gguf-auto@4.5bpw")
    assert "| auto, 4.5 bits |" in text and "\n\nAuto: every matrix has the type" in text
    assert "llama-cli -hf bot/tiny-llama-X -hff t-1.gguf" in text and "ollama run hf.co/bot/tiny-llama-X:t-1.gguf" in text
    assert "Auto: " not in build(report, *GGUF)


@pytest.mark.parametrize(
    ("variant", "commands"),
    [
        ("gguf-q4_k_m", ["llama-cli -hf bot/tiny-llama-X:Q4_K_M", "ollama run hf.co/bot/tiny-llama-X:Q4_K_M", 'gguf_file="tiny-Q']),
        ("awq-int4-g128", ["import hubquant", 'from_pretrained("bot/tiny-llama-X")', "vllm serve bot/tiny-llama-X"]),
    ],
)  # fmt: skip
def test_how_to_run_it(report: Report, variant: str, commands: list[str]) -> None:
    text = build(report, variant)
    assert all(command in text for command in commands)


def test_the_base_is_linked_by_its_commit(report: Report) -> None:
    text = card.build(manifest.restrict(report, ["gguf-q8_0"]), "bot/x-GGUF", BASE, "http://hub")
    assert f"[demo-org/tiny-llama](http://hub/demo-org/tiny-llama/tree/{'a' * 40}) at revision `{'a' * 12}`" in text


def test_a_local_base_has_no_address(report: Report) -> None:
    base = report.base.model_copy(update={"repo_id": "my-model", "revision": ""})
    text = build(report.model_copy(update={"base": base}), "gguf-q8_0")
    assert "base_model" not in front_matter(text)
    assert "my-model (a local model, fingerprint `ffffffffffff`)" in text


@pytest.mark.parametrize(("licence", "words"), [("llama3.1", "Built with Llama."), ("gemma", "Gemma Terms of Use"), ("mit", "mit")])
def test_words_that_a_licence_asks_for(report: Report, licence: str, words: str) -> None:
    assert words in build(report, "gguf-q8_0", base=BaseCard(license=licence))


EVIL = "x|y\n# Owned\n<script>alert(1)</script> [c](http://evil) `z` ---\n{{ 7*7 }}"


def test_a_hostile_base_breaks_nothing(report: Report, tmp_path: Path) -> None:
    base = Base(repo_id=EVIL, revision="a" * 40, fingerprint="f" * 64, license=EVIL)
    artifact = report.artifact("awq-int4-g128")
    tensor = artifact.tensors[0].model_copy(update={"name": EVIL, "note": EVIL, "type": EVIL})
    hostile = report.model_copy(
        update={
            "base": base,
            "artifacts": (artifact.model_copy(update={"tensors": (tensor,)}),),
            "notes": (EVIL,),
            "versions": {EVIL: EVIL},
            "verdicts": tuple(v.model_copy(update={"reason": EVIL, "passed": False}) for v in report.verdicts),
        }
    )
    text = build(hostile, "awq-int4-g128", base=BaseCard(license="other", license_name=EVIL, legal_files=(EVIL,)))
    body = text.split("\n---\n", 1)[1]
    body = re.sub(r"`[^`\n]+`", "", body)  # nothing is live inside a code span
    assert "<script>" not in body and "49" not in body
    assert "](http://evil)" not in body and "# Owned" not in re.findall(r"^#.*$", body, re.M)
    assert {len(row) for row in table(text, "| variant | check")} == {5}
    assert card.hubquant_block(text) == card.block_of(hostile)
    assert front_matter(text)["license_name"] == EVIL
    assert "base_model" not in front_matter(text)


def test_the_block_reads_back(report: Report) -> None:
    assert card.hubquant_block(build(report, "gguf-q8_0")) == card.block_of(report)


@pytest.mark.parametrize(
    "text", ["# A card", "---\nlicense: mit\n---\n", "---\nhubquant: yes\n---\n", "---\nhubquant: {schema: 9}\n---\n"]
)
def test_other_cards_have_no_block(text: str) -> None:
    assert card.hubquant_block(text) is None


def test_the_hub_accepts_the_card(report: Report, hub: Hub) -> None:
    for variants in (GGUF, ("awq-int4-g128",), ("gptq-int4-g128",)):
        card.validate(build(report, *variants), hub)


@pytest.mark.parametrize(("size_bytes", "text"), [(512, "0.51 kB"), (7_348_736, "7.35 MB"), (4_920_000_000, "4.92 GB")])
def test_sizes(size_bytes: int, text: str) -> None:
    assert card.size(size_bytes) == text
