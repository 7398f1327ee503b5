"""The door to the queue: what is admitted is in the queue, what is not has a reason, and nothing is done twice."""

from collections.abc import Callable

import pytest
from huggingface_hub import HfApi

from hubquant.bot import queue
from hubquant.bot.intake import consider, plan, request
from hubquant.bot.job import Job
from hubquant.bot.policy import Decision
from hubquant.config import Policy, Settings
from hubquant.errors import HubUnavailable, UsageError
from hubquant.hub.client import Hub
from hubquant.hub.local.server import LocalHub

AddModel = Callable[..., str]
CONFIG = b'{"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "awq"}}'
TOKENIZER = {"tokenizer.json": b"{}"}


def test_an_admitted_model_is_in_the_queue_once(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    repo_id = add_model("one")
    first = consider(settings, hub, hub.model_info(repo_id))
    assert first.admitted
    assert first.reason == "2 variants to make"
    assert first.job is not None
    assert [(job.id, job.requested_by) for job in queue.list_jobs(settings)] == [(first.job.id, "watcher")]
    again = consider(settings, hub, hub.model_info(repo_id))
    assert again.reason == f"already in the queue as job {first.job.id}"
    assert len(queue.list_jobs(settings)) == 1


def test_a_changed_readme_is_the_same_work_changed_weights_are_not(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    first = consider(settings, hub, hub.model_info(add_model("one")))
    readme = consider(settings, hub, hub.model_info(add_model("one", tags="poetry")))
    assert readme.reason.startswith("already in the queue")
    weights = {"config.json": b"{}", "model.safetensors": b"better weights", "tokenizer.json": b"{}"}
    changed = consider(settings, hub, hub.model_info(add_model("one", files=weights)))
    assert changed.reason == "2 variants to make"
    assert first.job is not None
    assert changed.job is not None
    assert changed.job.id != first.job.id
    assert len(queue.list_jobs(settings)) == 2


@pytest.mark.parametrize(
    ("card", "files", "reason"),
    [
        ({}, {"config.json": b"{}", "pytorch_model.bin": b"\x80", **TOKENIZER}, "only pickled weights (pytorch_model.bin)"),
        ({}, {"config.json": b"{}", "model.safetensors": b"w"}, "has no tokenizer"),
        ({}, {"config.json": CONFIG, "model.safetensors": b"w", **TOKENIZER}, "is itself quantized (awq)"),
        ({}, {"config.json": b"{}", "model-00001-of-00002.safetensors": b"w", **TOKENIZER}, "model-00002-of-00002"),
        ({}, {}, "has no config.json"),
        ({"license": "cc-by-nd-4.0"}, {}, "its licence cc-by-nd-4.0 forbids derivatives"),
        ({"license": "unknown"}, {}, "its licence unknown is not on the list"),
    ],
)  # fmt: skip
def test_what_cannot_or_may_not_be_made_is_declined(
    hub: Hub, settings: Settings, add_model: AddModel, card: dict[str, str], files: dict[str, bytes], reason: str
) -> None:
    repo_id = add_model("bad", files=files, **card)
    listed = next(iter(hub.list_models(author="demo-org", expand=["tags", "sha"])))
    decision = consider(settings, hub, listed)
    assert (decision.repo_id, decision.admitted, decision.later) == (repo_id, False, False)
    assert reason in decision.reason
    assert queue.list_jobs(settings) == []


def test_gated_models(hub: Hub, org: HfApi, settings: Settings, add_model: AddModel) -> None:
    repo_id = add_model("walled")
    org.update_repo_settings(repo_id, gated="manual")
    assert "it is gated (manual)" in consider(settings, hub, hub.model_info(repo_id)).reason
    allowed = settings.model_copy(update={"policy": Policy(allow_gated=True)})
    decision = consider(allowed, hub, hub.model_info(repo_id))
    assert not decision.admitted
    assert "has not been granted" in decision.reason or "access" in decision.reason
    assert queue.list_jobs(settings) == []


def test_gone_since_it_was_listed(hub: Hub, org: HfApi, settings: Settings, add_model: AddModel) -> None:
    listed = hub.model_info(add_model("gone"))
    org.delete_repo("demo-org/gone")
    decision = consider(settings, hub, listed)
    assert not decision.admitted
    assert "demo-org/gone" in decision.reason
    assert queue.list_jobs(settings) == []


def test_a_hub_that_does_not_answer_puts_the_decision_off(
    hub: Hub, settings: Settings, local_hub: LocalHub, add_model: AddModel
) -> None:
    listed = hub.model_info(add_model("one"))
    local_hub.faults.inject("^/api/models/demo-org/one", status=503, times=9)
    decision = consider(settings, hub, listed)
    assert (decision.admitted, decision.later) == (False, True)
    with pytest.raises(HubUnavailable):
        request(settings, hub, "demo-org/one", (), "ada")
    local_hub.faults.clear()
    assert consider(settings, hub, listed).admitted


def test_a_person_s_request(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    add_model("one")
    cool = settings.model_copy(update={"policy": Policy(cooldown_hours=24)})
    assert "taken up at" in consider(cool, hub, hub.model_info("demo-org/one")).reason
    job = request(cool, hub, "demo-org/one", ("gguf-q8_0",), "ada")
    assert isinstance(job, Job)
    assert job.recipe.variants == ("gguf-q8_0",)
    assert job.recipe.calibration.text_sha256, "the recipe's hash stands for its texts"
    assert [(status.id, status.requested_by) for status in queue.list_jobs(cool)] == [(job.id, "ada")]
    assert request(cool, hub, "demo-org/one", ("gguf-q8_0",), "bob") == job.model_copy(update={"requested_by": "bob"})
    assert len(queue.list_jobs(cool)) == 1


def test_a_plan_says_what_a_request_would_and_queues_nothing(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    add_model("one")
    decision = plan(settings, hub, "demo-org/one", ("gguf-q8_0",), "ada")
    assert (decision.admitted, decision.reason) == (True, "1 variant to make")
    assert queue.list_jobs(settings) == []
    assert request(settings, hub, "demo-org/one", ("gguf-q8_0",), "ada") == decision.job
    again = plan(settings, hub, "demo-org/one", ("gguf-q8_0",), "bob")
    assert decision.job is not None
    assert again.reason == f"already in the queue as job {decision.job.id}"


def test_a_person_s_request_meets_the_same_policy(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    add_model("one", license="cc-by-nd-4.0")
    answer = request(settings, hub, "demo-org/one", (), "ada")
    assert isinstance(answer, Decision)
    assert "forbids derivatives" in answer.reason
    missing = request(settings, hub, "demo-org/nothing-here", (), "ada")
    assert isinstance(missing, Decision)
    assert "demo-org/nothing-here" in missing.reason
    with pytest.raises(UsageError, match="unknown variant 'gptq-int3'"):
        request(settings, hub, "demo-org/one", ("gptq-int3",), "ada")


def test_what_a_person_cancelled_is_not_made_unasked(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    decision = consider(settings, hub, hub.model_info(add_model("one")))
    assert decision.job is not None
    queue.cancel(settings, decision.job.id)
    again = consider(settings, hub, hub.model_info("demo-org/one"))
    assert not again.admitted
    assert again.reason == f"was cancelled; `hubquant jobs retry {decision.job.id}` takes it up again"


def test_without_a_namespace_nothing_is_queued(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    add_model("one")
    nowhere = settings.model_copy(update={"publish": settings.publish.model_copy(update={"namespace": ""})})
    with pytest.raises(UsageError, match=r"publish\.namespace"):
        request(nowhere, hub, "demo-org/one", (), "ada")
