"""The bot for people at a terminal: each decision, each change of a job, the summary."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from hubquant.bot.policy import Decision
from hubquant.bot.queue import JobStatus
from hubquant.bot.worker import Observer, RunSummary
from hubquant.console import bars


@contextmanager
def observer(out: Console) -> Iterator[Observer]:
    """Prints each decision and each step when it begins; within the heavy steps a bar shows how far they are."""
    seen: dict[str, tuple[str, str]] = {}

    def decided(decision: Decision) -> None:
        mark = "[green]admitted[/]" if decision.admitted else "[yellow]declined[/]"
        out.print(f"{mark} {decision.repo_id}: {decision.reason}")

    with bars(out) as tell:

        def changed(job: JobStatus) -> None:
            if job.progress is not None:
                tell(job.progress.stage, job.progress.done, job.progress.total)
            where = (job.state, job.step)
            if seen.get(job.id) != where:
                seen[job.id] = where
                step, error = f", {job.step}" if job.step else "", f": {job.error}" if job.error else ""
                out.print(f"job {job.id[:8]} {job.repo_id}: {job.state}{step}{error}")

        yield Observer(decision=decided, job=changed)


def summary_lines(summary: RunSummary) -> Iterator[str]:
    for job in summary.jobs:
        yield from (f"[green]published[/] {repo_id}" for repo_id in job.published)
        yield from (f"[yellow]not published[/] {name} of {job.repo_id}: {why}" for name, why in job.refused.items())
    yield from (f"[red]failed[/] {job.repo_id}: {job.error}" for job in summary.failed)
    if not summary.jobs:
        yield "nothing to do"


def jobs_table(jobs: list[JobStatus]) -> Table:
    table = Table("job", "model", "state", "step", "requested by", "result")
    for job in jobs:
        progress = f" {job.progress.done}/{job.progress.total}" if job.progress else ""
        table.add_row(
            job.id[:8], job.repo_id, job.state, job.step + progress, job.requested_by, job.error or "\n".join(job.published)
        )
    return table
