"""The queue from outside: jobs put in, looked at, cancelled, retried, from any process (command line, Space, webhook)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from dbos import DBOSClient, WorkflowStatus
from pydantic import Field

from hubquant.bot import database
from hubquant.bot.heavy import Progress
from hubquant.bot.job import Job
from hubquant.config import Settings
from hubquant.errors import HubquantError, HubUnavailable
from hubquant.hub.records import Records
from hubquant.recipe import Frozen

State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: dict[str, State] = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "done",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
ACTIVE = ["ENQUEUED", "DELAYED", "PENDING"]
EVENT = "progress"
RECORDS = "published"  # folder in the state folder
TAKEN_UP_AGAIN = timedelta(days=7)


class JobStatus(Frozen):
    """One job as the queue knows it. `error_type` is the class of errors.py (or a bug's). `refused`: what the gate stopped, with
    its reason, per variant."""

    id: str
    repo_id: str
    state: State
    step: str = ""
    progress: Progress | None = None
    error: str = ""
    error_type: str = ""
    published: tuple[str, ...] = ()
    refused: dict[str, str] = Field(default_factory=dict)
    requested_by: str
    created_at: datetime

    @property
    def active(self) -> bool:
        return self.state in ("queued", "running")

    @property
    def may_pass(self) -> bool:
        """It failed because the Hub did not answer: the worker takes it up again by itself."""
        return self.state == "failed" and self.error_type == HubUnavailable.__name__


def enqueue(settings: Settings, job: Job) -> JobStatus:
    """Puts the job in the queue, unless it was there before."""
    database.prepare(settings)
    with database.client(settings) as client:
        client.enqueue(
            {
                "workflow_name": database.WORKFLOW,
                "queue_name": database.QUEUE,
                "workflow_id": job.id,
                "app_version": database.APPLICATION_VERSION,
                "priority": job.priority,
                "attributes": {"repo_id": job.base.repo_id, "requested_by": job.requested_by},
            },
            job.canonical_json(),
        )
        return _status(client, _workflow(client, job.id))


def take_up_again(settings: Settings) -> list[JobStatus]:
    """Puts back in the queue what failed because the Hub did not answer. After some days a person has to ask for it."""
    since = (datetime.now(UTC) - TAKEN_UP_AGAIN).isoformat()
    with database.client(settings) as client:
        failed = client.list_workflows(name=database.WORKFLOW, status="ERROR", start_time=since, load_input=False)
        passing = [status for workflow in failed if (status := _status(client, workflow)).may_pass]
        for status in passing:
            _again(client, status)
    return passing


def find(settings: Settings, job_id: str) -> JobStatus | None:
    """The job with that id, None if it was never in the queue."""
    return next(iter(list_jobs(settings, ids=[job_id])), None)


def list_jobs(settings: Settings, *, active: bool = False, ids: Iterable[str] | None = None) -> list[JobStatus]:
    """All jobs, the newest first; with `active` those queued or running, with `ids` those named."""
    if not database.exists(settings):
        return []
    with database.client(settings) as client:
        workflows = client.list_workflows(
            name=database.WORKFLOW,
            status=list(ACTIVE) if active else None,
            workflow_ids=None if ids is None else list(ids),
            sort_desc=True,
            load_input=False,
        )
        return [_status(client, workflow) for workflow in workflows]


def cancel(settings: Settings, job_id: str) -> JobStatus:
    """Cancels a job that is queued or running; a heavy step is ended within seconds. `job_id` may be its first digits."""
    with _found(settings, job_id) as (client, status):
        if not status.active:
            raise HubquantError(f"job {status.id} is {status.state}, there is nothing to cancel")
        client.cancel_workflow(status.id)
        return _status(client, _workflow(client, status.id))


def retry(settings: Settings, job_id: str) -> JobStatus:
    """Puts a job back in the queue. One that failed or was cancelled goes on where it stopped; one that is done is made and
    published again, also where somebody deleted its repos."""
    with _found(settings, job_id) as (client, status):
        if status.active:
            raise HubquantError(f"job {status.id} is {status.state}; cancel it first")
        for repo_id in status.published:
            Records(settings.state / RECORDS).path(repo_id).unlink(missing_ok=True)
        _again(client, status)
        return _status(client, _workflow(client, status.id))


def _again(client: DBOSClient, status: JobStatus) -> None:
    steps = client.list_workflow_steps(status.id)
    kept = [step["function_id"] for step in steps if step["error"] is None]
    start = 1 if status.state == "done" else max(kept, default=0) + 1
    client.rewind_workflow(status.id, start_step=start, queue_name=database.QUEUE)


@contextmanager
def _found(settings: Settings, prefix: str) -> Iterator[tuple[DBOSClient, JobStatus]]:
    """The one job whose id starts so."""
    if not database.exists(settings):
        raise _misses(0, prefix)
    with database.client(settings) as client:
        found = client.list_workflows(name=database.WORKFLOW, workflow_id_prefix=prefix, load_input=False) if prefix else []
        if len(found) != 1:
            raise _misses(len(found), prefix)
        yield client, _status(client, found[0])


def _misses(count: int, prefix: str) -> HubquantError:
    what = f"{count} jobs have" if count else "no job has"
    return HubquantError(f"{what} an id that starts with {prefix!r}; `hubquant jobs` lists them")


def _workflow(client: DBOSClient, job_id: str) -> WorkflowStatus:
    return client.list_workflows(workflow_ids=[job_id], load_input=False)[0]


def _status(client: DBOSClient, workflow: WorkflowStatus) -> JobStatus:
    state = STATES[workflow.status]
    attributes = workflow.attributes or {}
    event: dict[str, Any] = {}
    if state == "running":
        event = client.get_event(workflow.workflow_id, EVENT, timeout_seconds=0) or {}
    outcome: dict[str, Any] = workflow.output if isinstance(workflow.output, dict) else {}
    error, error_type = _error(workflow)
    return JobStatus(
        id=workflow.workflow_id,
        repo_id=attributes.get("repo_id", ""),
        requested_by=attributes.get("requested_by", ""),
        state=state,
        step=event.get("step", ""),
        progress=event.get("progress"),
        error=error,
        error_type=error_type,
        published=tuple(outcome.get("published", ())),
        refused=outcome.get("refused", {}),
        created_at=datetime.fromtimestamp((workflow.created_at or 0) / 1000, UTC),
    )


def _error(workflow: WorkflowStatus) -> tuple[str, str]:
    """The sentence and the class of what a job failed with."""
    if workflow.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
        return f"the worker died {workflow.recovery_attempts} times over this job; see bot.log, then retry or leave it out", ""
    if workflow.error is None:
        return "", ""
    return str(workflow.error), getattr(workflow.error, "name", type(workflow.error).__name__)
