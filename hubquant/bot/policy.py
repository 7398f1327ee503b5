"""Which models are admitted. Pure: a ModelInfo, its base, what is published, in; a Decision with its reason, out."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from hubquant.artifact import Base
from hubquant.bot.job import Job
from hubquant.config import Policy
from hubquant.hub.snapshot import refusal
from hubquant.recipe import Frozen

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

OPT_OUT_TAG = "no-quantize"
ADAPTER_TAGS = frozenset({"lora", "adapter", "peft"})


class Decision(Frozen):
    """The policy's answer for one model, and the job that it became, if any. `later`: the reason passes by itself, look again
    at the next poll."""

    repo_id: str
    admitted: bool
    reason: str
    later: bool = False
    job: Job | None = None


def decide(info: "ModelInfo", policy: Policy, *, requested: bool = False, now: datetime | None = None) -> Decision:
    """Whether the Hub's description of a model passes. A person's request (`requested`) waits for no cool-down."""
    reason = next(_objections(info, policy), "")
    if reason:
        return Decision(repo_id=info.id, admitted=False, reason=reason)
    if not requested and (wait := _cooldown(info, policy, now or datetime.now(UTC))):
        return Decision(repo_id=info.id, admitted=False, reason=wait, later=True)
    return Decision(repo_id=info.id, admitted=True, reason="admitted by the policy")


def decide_base(base: Base, policy: Policy) -> Decision:
    """Whether the pinned base passes: its size, which a listing need not state, is known now."""
    reason = next(_size(base.parameters, policy), "")
    return Decision(repo_id=base.repo_id, admitted=not reason, reason=reason or "admitted by the policy")


def decide_job(job: Job, published: Mapping[str, Mapping[str, Any] | None]) -> Decision:
    """Whether there is anything to do. `published`: what the card of each wanted repo says of its making, None without one."""
    wanted = {"fingerprint": job.base.fingerprint, "recipe": job.recipe.sha256, "version": job.hubquant_version}
    done = [repo for repo, state in published.items() if state and all(state.get(key) == wanted[key] for key in wanted)]
    if published and len(done) == len(published):
        reason = f"up to date: {', '.join(done)}"
        return Decision(repo_id=job.base.repo_id, admitted=False, reason=reason)
    count = len(job.recipe.variants)
    return Decision(repo_id=job.base.repo_id, admitted=True, reason=f"{count} variant{'s' if count > 1 else ''} to make")


def _objections(info: "ModelInfo", policy: Policy) -> Iterator[str]:
    """Every reason against, the most telling first."""
    organisation = info.id.split("/")[0]
    tags = {tag.lower() for tag in info.tags or ()}
    if organisation.lower() in {name.lower() for name in policy.denied_organisations}:
        yield f"{organisation} is on the list of denied organisations"
    if OPT_OUT_TAG in tags:
        yield f"its author opted out with the tag {OPT_OUT_TAG}"
    if info.private:
        yield "it is private; what is made of it would not be"
    if info.disabled:
        yield "the Hub has disabled it"
    if info.gated and not policy.allow_gated:
        yield f"it is gated ({info.gated}) and the policy does not allow gated models (allow_gated)"
    yield from _derived(info, tags)
    yield from _licence(_licences(info), policy)
    yield from _size(info.safetensors.total if info.safetensors else 0, policy)
    if info.siblings is not None and (reason := refusal(info)):  # a listing does not name the files
        yield reason


def _derived(info: "ModelInfo", tags: set[str]) -> Iterator[str]:
    for relation, noun in (("quantized", "a quantization"), ("adapter", "an adapter")):
        if of := next((tag for tag in sorted(tags) if tag.startswith(f"base_model:{relation}:")), None):
            yield f"it is itself {noun} of {of.split(':', 2)[2]}"
    if tags & ADAPTER_TAGS or info.library_name == "peft":
        yield "it is an adapter, not a base model"


def _licences(info: "ModelInfo") -> tuple[str, ...]:
    """The licence's name for `other`. The card's own words where the Hub sent the card, else its tags."""
    card: dict[str, Any] = info.card_data.to_dict() if info.card_data else {}  # type: ignore[no-untyped-call]
    named = card.get("license") or [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    names = [named] if isinstance(named, str) else list(named)
    return tuple(str(card.get("license_name") or name) if name == "other" else str(name) for name in names)


def _licence(names: tuple[str, ...], policy: Policy) -> Iterator[str]:
    allowed = {name.lower() for name in policy.licenses}
    if not any(names):
        yield "it states no licence"
    for name in names:
        lowered = name.lower()
        if lowered in allowed:
            continue
        if "-nd" in lowered or "no-deriv" in lowered:
            yield f"its licence {name} forbids derivatives"
        else:
            yield f"its licence {name} is not on the list of admitted licences"


def _size(parameters: int, policy: Policy) -> Iterator[str]:
    if parameters and parameters < policy.min_parameters:
        yield f"it has {parameters:,} parameters, fewer than min_parameters = {policy.min_parameters:,}"
    if parameters > policy.max_parameters:
        yield f"it has {parameters:,} parameters, more than max_parameters = {policy.max_parameters:,}"


def _cooldown(info: "ModelInfo", policy: Policy, now: datetime) -> str:
    changed = info.last_modified or info.created_at
    if changed is None or not policy.cooldown_hours:
        return ""
    ready = changed + timedelta(hours=policy.cooldown_hours)
    if now >= ready:
        return ""
    return (
        f"changed {changed:%Y-%m-%d %H:%M} UTC; taken up at {ready:%Y-%m-%d %H:%M} UTC (cooldown_hours = {policy.cooldown_hours:g})"
    )
