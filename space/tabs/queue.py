"""Tab "Queue": the bot's jobs, moving."""

from collections.abc import Callable

from cached import Cached
from view import render

from hubquant.bot.queue import JobStatus, list_jobs
from hubquant.config import Settings
from hubquant.console import STAGES

NEWEST = 50
FRESH_SECONDS = 1.0
PATIENCE_SECONDS = 1.0


def tab(settings: Settings, endpoint: str) -> Callable[[], str]:
    """What the tab shows, as a function that returns its HTML."""
    jobs: Cached[list[JobStatus]] = Cached(lambda: list_jobs(settings), FRESH_SECONDS)
    return lambda: show(jobs, endpoint)


def show(jobs: Cached[list[JobStatus]], endpoint: str) -> str:
    answer = jobs.get(PATIENCE_SECONDS)
    listed = None if answer.value is None else answer.value[:NEWEST]
    return render("queue", jobs=listed, error=answer.error, endpoint=endpoint, stages=STAGES)
