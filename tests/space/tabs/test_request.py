"""Tab "Request": the preview says what a request would, a request enters the queue, and every refusal is a sentence."""

from collections.abc import Callable

import gradio as gr
import numpy as np
import pytest
from safetensors.numpy import save
from tabs import request

from hubquant.bot import queue
from hubquant.config import Settings
from hubquant.hub.client import Hub
from hubquant.hub.local.server import LocalHub
from hubquant.recipe import OFFERED_VARIANTS, VARIANTS, variant

AddModel = Callable[..., str]
ADA = gr.OAuthProfile({"name": "Ada", "preferred_username": "ada", "profile": "", "picture": ""})


def test_every_variant_has_a_label_of_its_own() -> None:
    labels = [request.label(variant(name)) for name in {*VARIANTS, *OFFERED_VARIANTS}]
    assert len(set(labels)) == len(labels)
    assert "GGUF · 4.5bpw · by sensitivity" in labels
    assert "AWQ · 4 bit · groups of 128" in labels
    assert "GGUF · 6 bit · Q6_K" in labels


def test_others_are_written_beside_the_ticked_ones(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    names = request.chosen(["gguf-q8_0"], "gguf-iq3_m,gguf-auto@3.50bpw  gguf-q8_0")
    assert names == ["gguf-q8_0", "gguf-iq3_m", "gguf-auto@3.50bpw"]
    html, _ = request.check(settings, hub, add_model("one"), names, None)
    assert "GGUF · 3 bit · IQ3_M" in html and "GGUF · 3.5bpw · by sensitivity" in html
    html, wish = request.check(settings, hub, "demo-org/one", request.chosen([], "iq3_m"), None)
    assert "did you mean gguf-iq3_m?" in html and wish is None


def test_a_preview_asks_for_nothing_and_a_wish_enters_the_queue(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    repo_id = add_model("one")
    html, wish = request.check(settings, hub, f" {hub.endpoint}/{repo_id} ", ["gguf-q8_0", "awq-int4-g128"], None)
    assert "2 variants to make" in html
    assert "apache-2.0" in html
    assert "LlamaForCausalLM" in html
    assert "demo-bot/one-GGUF" in html
    assert wish == request.Wish(repo_id=repo_id, variants=("gguf-q8_0", "awq-int4-g128"))
    assert wish.label == "Request 2 variants of demo-org/one"
    assert queue.list_jobs(settings) == []

    asked = request.ask(settings, hub, wish, None)
    (job,) = queue.list_jobs(settings)
    assert (job.repo_id, job.state, job.requested_by) == (repo_id, "queued", "anonymous")
    assert f"in the queue as job {job.id[:8]}" in asked

    again, _ = request.check(settings, hub, repo_id, list(wish.variants), None)
    assert f"already in the queue as job {job.id}" in again


def test_sizes_come_from_the_parameters_that_the_hub_states(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    weights = save({"model.embed_tokens.weight": np.zeros((1000, 64), np.float16), "w": np.zeros((9000, 64), np.float16)})
    config = b'{"architectures": ["LlamaForCausalLM"], "vocab_size": 1000, "hidden_size": 64, "tie_word_embeddings": true}'
    repo_id = add_model("one", files={"config.json": config, "model.safetensors": weights, "tokenizer.json": b"{}"})
    html, _ = request.check(settings, hub, repo_id, ["gguf-q8_0", "gptq-int4-g128"], None)
    assert "640,000" in html
    assert "about 680.0 kB" in html, "640,000 × 8.5 / 8"
    assert "about 427.2 kB" in html, "(576,000 × (4 + 20/128) + 64,000 × 16) / 8"


def test_without_a_stated_count_the_size_is_unknown(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    html, _ = request.check(settings, hub, add_model("one"), ["gguf-q8_0"], None)
    assert "unknown" in html
    assert "about" not in html


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("", "Name a model first"),
        ("demo-org/nothing-here", "demo-org/nothing-here is not on"),
        ("a/b/c", "is not the id of a repo"),
        ("<b>x</b>", "&lt;b&gt;x&lt;/b&gt;"),
    ],
)
def test_what_is_no_model_gets_a_sentence(hub: Hub, settings: Settings, model: str, sentence: str) -> None:
    html, wish = request.check(settings, hub, model, ["gguf-q8_0"], None)
    assert sentence in html
    assert "<b>x</b>" not in html
    assert wish is None


def test_at_least_one_variant(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    html, wish = request.check(settings, hub, add_model("one"), [], None)
    assert "Choose at least one variant" in html
    assert wish is None


def test_the_policy_s_refusal_is_shown_before_and_after_asking(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    repo_id = add_model("one", license="cc-by-nd-4.0")
    html, wish = request.check(settings, hub, repo_id, ["gguf-q8_0"], None)
    assert "declined: its licence cc-by-nd-4.0 forbids derivatives" in html
    assert wish is None
    html = request.ask(settings, hub, request.Wish(repo_id=repo_id, variants=("gguf-q8_0",)), None)
    assert "declined: its licence cc-by-nd-4.0 forbids derivatives" in html
    assert queue.list_jobs(settings) == []


def test_a_hub_that_does_not_answer_is_a_sentence(hub: Hub, settings: Settings, local_hub: LocalHub, add_model: AddModel) -> None:
    repo_id = add_model("one")
    local_hub.faults.inject("^/api/models/demo-org/one", status=503, times=9)
    html, wish = request.check(settings, hub, repo_id, ["gguf-q8_0"], None)
    assert "failed 2 times, last with HTTP 503" in html
    assert wish is None
    html = request.ask(settings, hub, request.Wish(repo_id=repo_id, variants=("gguf-q8_0",)), None)
    assert "failed 2 times, last with HTTP 503" in html


def test_an_unknown_variant_is_a_sentence(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    html = request.ask(settings, hub, request.Wish(repo_id=add_model("one"), variants=("gptq-int3",)), None)
    assert "unknown variant &#39;gptq-int3&#39;" in html


@pytest.mark.usefixtures("on_a_space")
def test_on_a_space_everybody_may_look_and_who_signed_in_may_ask(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    repo_id = add_model("one")
    html, wish = request.check(settings, hub, repo_id, ["gguf-q8_0"], None)
    assert "1 variant to make" in html
    assert "Sign in" in html
    assert wish is None
    stolen = request.Wish(repo_id=repo_id, variants=("gguf-q8_0",))
    assert "sign in" in request.ask(settings, hub, stolen, None)
    assert queue.list_jobs(settings) == []

    _, wish = request.check(settings, hub, repo_id, ["gguf-q8_0"], ADA)
    assert wish is not None
    request.ask(settings, hub, wish, ADA)
    assert [job.requested_by for job in queue.list_jobs(settings)] == ["@ada"]
