"""The one door to the queue: the watcher's finds and people's requests meet the same policy here."""

from huggingface_hub import ModelInfo

from hubquant.bot import queue
from hubquant.bot.job import WATCHER, Job
from hubquant.bot.policy import Decision, decide, decide_base, decide_job
from hubquant.calibrate.source import with_texts
from hubquant.config import Settings
from hubquant.errors import HubError, HubquantError, HubUnavailable, UsageError
from hubquant.hub import publish, snapshot
from hubquant.hub.client import Hub
from hubquant.recipe import Recipe, variant


def request(settings: Settings, hub: Hub, repo_id: str, variants: tuple[str, ...], requested_by: str) -> Job | Decision:
    """A person's wish: the job that is in the queue for it now, or the policy's refusal. Its job runs before what the watcher
    found, and it waits for no cool-down. `variants` () means the recipe's.

    Raises UsageError for an unknown variant, HubUnavailable.
    """
    decision = _enqueued(settings, plan(settings, hub, repo_id, variants, requested_by))
    return decision.job if decision.admitted and decision.job else decision


def plan(settings: Settings, hub: Hub, repo_id: str, variants: tuple[str, ...], requested_by: str) -> Decision:
    """What `request` would answer to the same wish; nothing enters the queue. The decision carries the job wherever the policy
    lets the model pass, also if it is made or being made already.

    Raises UsageError for an unknown variant, HubUnavailable.
    """
    recipe = settings.recipe
    if variants:
        recipe = recipe.model_copy(update={"variants": tuple(variant(name).name for name in variants)})
    return _decide(settings, hub, repo_id, recipe, requested_by)


def consider(settings: Settings, hub: Hub, listed: ModelInfo) -> Decision:
    """What becomes of a model that the watcher listed; if admitted, its job is in the queue."""
    decision = decide(listed, settings.policy)  # most refusals need no further call
    if not decision.admitted:
        return decision
    try:
        return _enqueued(settings, _decide(settings, hub, listed.id, settings.recipe, WATCHER))
    except HubUnavailable as error:
        return Decision(repo_id=listed.id, admitted=False, reason=str(error), later=True)


def _enqueued(settings: Settings, decision: Decision) -> Decision:
    if decision.admitted and decision.job is not None:
        queue.enqueue(settings, decision.job)
    return decision


def _decide(settings: Settings, hub: Hub, repo_id: str, recipe: Recipe, requested_by: str) -> Decision:
    namespace = settings.publish.namespace
    if not namespace:
        raise UsageError("no namespace to publish to; set publish.namespace in hubquant.toml")
    try:
        decision = decide(hub.model_info(repo_id), settings.policy, requested=requested_by != WATCHER)
        if not decision.admitted:
            return decision
        base = snapshot.pin(hub, repo_id)
        decision = decide_base(base, settings.policy)
        if not decision.admitted:
            return decision
        job = Job(base=base, recipe=with_texts(recipe), namespace=namespace, requested_by=requested_by)
        known = queue.find(settings, job.id)
        if known is not None:
            return _known(job, known)
        decision = decide_job(job, {repo: publish.desired_state(hub, repo) for repo in publish.repo_ids(base, recipe, namespace)})
    except HubUnavailable:
        raise
    except HubquantError as error:  # gone since it was listed, gated, no weights yet
        return Decision(repo_id=repo_id, admitted=False, reason=str(error), later=isinstance(error, HubError))
    return decision.model_copy(update={"job": job})


def _known(job: Job, known: queue.JobStatus) -> Decision:
    """What to say of a job that the queue has already seen. What a person deleted, cancelled or has to mend is not made again
    unasked."""
    again = f"`hubquant jobs retry {known.id}` takes it up again"
    reasons = {
        "queued": f"already in the queue as job {known.id}",
        "running": f"already being made as job {known.id}",
        "done": f"up to date: made as job {known.id} ({', '.join(known.published)})",
        "failed": f"failed before: {known.error}; {again}",
        "cancelled": f"was cancelled; {again}",
    }
    return Decision(repo_id=job.base.repo_id, admitted=known.active, reason=reasons[known.state], job=job)
