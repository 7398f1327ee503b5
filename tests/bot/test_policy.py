"""Every refusal has a reason that a person understands."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from huggingface_hub import ModelInfo

from hubquant.artifact import Base
from hubquant.bot.job import Job
from hubquant.bot.policy import decide, decide_base, decide_job
from hubquant.config import Policy
from hubquant.recipe import Recipe

NOW = datetime(2026, 5, 1, tzinfo=UTC)
FILES = ["config.json", "model.safetensors", "tokenizer.json", "README.md"]


def info(**changes: Any) -> ModelInfo:
    """What the Hub says of a sound base model, changed as a test asks."""
    described = {
        "id": "org/model",
        "sha": "a" * 40,
        "private": False,
        "disabled": False,
        "gated": False,
        "tags": ["transformers", "license:apache-2.0"],
        "cardData": {"license": "apache-2.0"},
        "siblings": [{"rfilename": name} for name in FILES],
        "config": {"architectures": ["LlamaForCausalLM"]},
        "safetensors": {"parameters": {"F32": 7_000_000}, "total": 7_000_000},
        "lastModified": "2026-04-01T00:00:00.000Z",
    }
    return ModelInfo(**{**described, **changes})


def test_a_sound_model_is_admitted() -> None:
    assert decide(info(), Policy()).admitted


@pytest.mark.parametrize(
    ("changes", "policy", "reason"),
    [
        ({"cardData": {"license": "cc-by-nd-4.0"}}, {}, "its licence cc-by-nd-4.0 forbids derivatives"),
        ({"cardData": {"license": "acme-1.0"}}, {}, "its licence acme-1.0 is not on the list"),
        ({"cardData": {"license": "other", "license_name": "acme-1.0"}}, {}, "its licence acme-1.0 is not on the list"),
        ({"cardData": {"license": ["mit", "cc-by-nd-4.0"]}}, {}, "its licence cc-by-nd-4.0 forbids derivatives"),
        ({"cardData": {}, "tags": []}, {}, "it states no licence"),
        ({"cardData": None, "tags": ["license:acme-1.0"]}, {}, "its licence acme-1.0 is not on the list"),
        ({}, {"denied_organisations": ("ORG",)}, "org is on the list of denied organisations"),
        ({"tags": ["no-quantize"]}, {}, "opted out with the tag no-quantize"),
        ({"gated": "manual"}, {}, "it is gated (manual)"),
        ({"private": True}, {}, "it is private"),
        ({"disabled": True}, {}, "the Hub has disabled it"),
        ({}, {"min_parameters": 10_000_000}, "it has 7,000,000 parameters, fewer than min_parameters = 10,000,000"),
        ({}, {"max_parameters": 1_000_000}, "it has 7,000,000 parameters, more than max_parameters = 1,000,000"),
        ({"tags": ["base_model:quantized:org/base"]}, {}, "it is itself a quantization of org/base"),
        ({"tags": ["base_model:adapter:org/base"]}, {}, "it is itself an adapter of org/base"),
        ({"library_name": "peft"}, {}, "it is an adapter"),
        ({"config": {"quantization_config": {"quant_method": "gptq"}}}, {}, "is itself quantized (gptq)"),
        (
            {"siblings": [{"rfilename": n} for n in ("config.json", "tokenizer.json", "pytorch_model.bin")]},
            {},
            "only pickled weights",
        ),
        ({"siblings": [{"rfilename": n} for n in ("config.json", "model.safetensors")]}, {}, "has no tokenizer"),
        ({"siblings": [{"rfilename": "model.gguf"}], "tags": ["gguf"]}, {}, "is itself quantized (tag gguf)"),
    ],
)
def test_refusals(changes: dict[str, Any], policy: dict[str, Any], reason: str) -> None:
    decision = decide(info(**changes), Policy(**policy))
    assert not decision.admitted
    assert not decision.later
    assert reason in decision.reason
    assert "\n" not in decision.reason


def test_a_listing_that_names_no_files_is_not_held_against_the_model() -> None:
    assert decide(info(siblings=None, config=None, cardData=None), Policy()).admitted


def test_gated_models_can_be_allowed() -> None:
    assert decide(info(gated="auto"), Policy(allow_gated=True)).admitted


def test_cooldown_puts_off_what_the_watcher_found_but_not_what_a_person_asks_for() -> None:
    policy = Policy(cooldown_hours=24)
    young = info(lastModified=(NOW - timedelta(hours=23)).isoformat().replace("+00:00", "Z"))
    decision = decide(young, policy, now=NOW)
    assert not decision.admitted
    assert decision.later
    assert "taken up at 2026-05-01 01:00 UTC" in decision.reason
    assert decide(young, policy, now=NOW + timedelta(hours=1)).admitted
    assert decide(young, policy, now=NOW, requested=True).admitted


def test_the_size_counts_once_it_is_known() -> None:
    base = Base(repo_id="org/model", revision="a" * 40, fingerprint="f" * 64, parameters=90_000_000_000)
    unknown = info(safetensors=None)
    assert decide(unknown, Policy()).admitted
    assert "more than max_parameters" in decide_base(base, Policy()).reason


def test_up_to_date_only_if_every_repo_says_so() -> None:
    job = Job(base=Base(repo_id="org/model", revision="a" * 40, fingerprint="f" * 64), recipe=Recipe(), namespace="bot")
    state = {"fingerprint": "f" * 64, "recipe": job.recipe.sha256, "version": job.hubquant_version}
    done = decide_job(job, {"bot/model-AWQ": state, "bot/model-GGUF": state})
    assert not done.admitted
    assert done.reason == "up to date: bot/model-AWQ, bot/model-GGUF"
    assert decide_job(job, {"bot/model-AWQ": state, "bot/model-GGUF": None}).admitted
    for key in state:
        stale = {**state, key: "older"}
        assert decide_job(job, {"bot/model-AWQ": state, "bot/model-GGUF": stale}).admitted, key
