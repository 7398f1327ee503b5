"""Tab "Request": name a model, choose variants, see what would be made of it, ask for it."""

import json
from typing import Any

import gradio as gr
import visitor
from view import note, render

from hubquant import estimate
from hubquant.artifact import Base
from hubquant.bot import intake
from hubquant.bot.job import Job
from hubquant.bot.policy import Decision
from hubquant.config import Settings
from hubquant.errors import HubquantError
from hubquant.hub import publish
from hubquant.hub.client import Hub
from hubquant.recipe import OFFERED_VARIANTS, ROW, Frozen, Variant
from hubquant.recipe import variant as variant_of

START = "Name a model and press Check: you will see whether it can be made and how large it would be, before anything is asked for."


class Wish(Frozen):
    """What was checked and may be asked for."""

    repo_id: str
    variants: tuple[str, ...]

    @property
    def label(self) -> str:
        count = len(self.variants)
        return f"Request {count} variant{'s' if count > 1 else ''} of {self.repo_id}"


def label(variant: Variant) -> str:
    """The variant for a person who chooses: format, bits, and what else tells it from its neighbours."""
    if variant.by_sensitivity:
        return f"{variant.format.upper()} · {variant.name.partition('@')[2]} · by sensitivity"
    detail = variant.mixture or ("whole rows" if variant.group_size == ROW else f"groups of {variant.group_size}")
    return f"{variant.format.upper()} · {variant.bits} bit · {detail}"


def chosen(ticked: list[str], others: str) -> list[str]:
    """What is ticked and what is written beside it, between spaces or commas; each once."""
    return list(dict.fromkeys((*ticked, *others.replace(",", " ").split())))


def check(
    settings: Settings, hub: Hub, model: str, variants: list[str], profile: gr.OAuthProfile | None
) -> tuple[str, Wish | None]:
    """The preview as HTML: the policy's answer and estimated sizes. With it the wish, if it would be granted to this visitor."""
    repo_id = model.strip().removeprefix(f"{hub.endpoint}/")
    if not repo_id:
        return note("Name a model first, as ORGANISATION/NAME.", bad=True), None
    if not variants:
        return note("Choose at least one variant.", bad=True), None
    try:
        decision = intake.plan(settings, hub, repo_id, tuple(variants), visitor.ANONYMOUS)
        config = _config(hub, decision.job.base) if decision.job else {}
    except HubquantError as error:
        return note(str(error), bad=True), None
    preview = _preview(decision, config, hub.endpoint)
    if not decision.admitted:
        return preview, None
    if not visitor.may_ask(profile):
        return preview + note("Sign in with your Hugging Face account to ask for it."), None
    return preview, Wish(repo_id=repo_id, variants=tuple(variants))


def ask(settings: Settings, hub: Hub, wish: Wish, profile: gr.OAuthProfile | None) -> str:
    """Puts the wish in the queue, or says why not."""
    try:
        answer = intake.request(settings, hub, wish.repo_id, wish.variants, visitor.name(profile))
    except HubquantError as error:
        return note(str(error), bad=True)
    if not isinstance(answer, Job):
        return note(f"{wish.repo_id} was declined: {answer.reason}", bad=True)
    return render("asked", job=answer)


def _config(hub: Hub, base: Base) -> dict[str, Any]:
    """config.json; empty if it is not a JSON object, which the job will say more about."""
    try:
        config = json.loads(hub.read_text(base.repo_id, "config.json", base.revision) or "")
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def _preview(decision: Decision, config: dict[str, Any], endpoint: str) -> str:
    job, rows = decision.job, []
    if job is not None:
        for variant in map(variant_of, job.recipe.variants):
            repo_id = publish.repo_id_for(job.base.repo_id, variant, job.namespace)
            size_bytes = estimate.size_bytes(variant, job.base.parameters, estimate.vocabulary_parameters(config))
            rows.append((label(variant), repo_id, size_bytes))
    return render("preview", decision=decision, job=job, rows=rows, endpoint=endpoint)


def tab(settings: Settings, hub: Hub) -> None:
    """Lays out the tab in the page that is being built."""
    checked = gr.State(None)
    with gr.Row():
        with gr.Column(min_width=300):
            model = gr.Textbox(label="Model on the Hub", placeholder="organisation/name", max_lines=1, elem_id="model")
            offered = dict.fromkeys((*settings.recipe.variants, *OFFERED_VARIANTS))
            variants = gr.CheckboxGroup(
                [(label(variant_of(name)), name) for name in offered],
                value=list(settings.recipe.variants),
                label="Variants",
                elem_id="variants",
            )
            others = gr.Textbox(
                label="Others: every mixture of llama.cpp, any bits per weight",
                placeholder="gguf-iq3_m, gguf-auto@3.4bpw",
                max_lines=1,
                elem_id="others",
            )
            look = gr.Button("Check", variant="secondary", elem_id="check")
        with gr.Column(min_width=300):
            preview = gr.HTML(note(START), elem_id="preview", apply_default_css=False)
            go = gr.Button("Request", variant="primary", visible=False, elem_id="request")

    def on_check(
        model: str, variants: list[str], others: str, profile: gr.OAuthProfile | None
    ) -> tuple[str, Wish | None, gr.Button]:
        html, wish = check(settings, hub, model, chosen(variants, others), profile)
        return html, wish, gr.Button(wish.label if wish else "Request", visible=wish is not None)

    def on_ask(wish: Wish | None, profile: gr.OAuthProfile | None) -> tuple[str, None, gr.Button]:
        html = ask(settings, hub, wish, profile) if wish else note(START)
        return html, None, gr.Button(visible=False)

    outputs = [preview, checked, go]
    asked = [look.click, model.submit, others.submit]
    gr.on(asked, on_check, [model, variants, others], outputs, api_visibility="private", concurrency_limit=4)
    go.click(on_ask, [checked], outputs, api_visibility="private", concurrency_limit=4)
