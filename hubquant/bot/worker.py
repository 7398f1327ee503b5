"""The unattended bot: poll, decide, enqueue, work the queue; once until it is empty, or on and on."""

import fcntl
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType

from hubquant.bot import database, queue
from hubquant.bot.intake import consider
from hubquant.bot.policy import Decision
from hubquant.bot.queue import JobStatus
from hubquant.bot.watch import Marks, candidates
from hubquant.bot.workflow import Bench, at
from hubquant.config import Settings
from hubquant.errors import HubUnavailable, NotAuthorized, UsageError, WorkerBusy
from hubquant.hub.client import Hub
from hubquant.recipe import Frozen

POLL_SECONDS = 0.5
STOP_SECONDS = 10.0
RESUMABLE = {HubUnavailable.__name__, NotAuthorized.__name__}
log = logging.getLogger(__name__)


class RunSummary(Frozen):
    """One poll and the work that followed. `jobs` are those worked on; `interrupted`: asked to stop before the queue was empty."""

    decisions: tuple[Decision, ...] = ()
    jobs: tuple[JobStatus, ...] = ()
    interrupted: bool = False

    @property
    def published(self) -> tuple[str, ...]:
        return tuple(repo_id for job in self.jobs for repo_id in job.published)

    @property
    def failed(self) -> tuple[JobStatus, ...]:
        return tuple(job for job in self.jobs if job.state == "failed")


@dataclass
class Observer:
    """Who wants to hear what happens while it happens. `job` is called at every change of state, step or progress."""

    decision: Callable[[Decision], None] = field(default=lambda decision: None)
    job: Callable[[JobStatus], None] = field(default=lambda status: None)


def run_once(
    settings: Settings, token: str | bool | None = None, observer: Observer | None = None, bench: Bench | None = None
) -> RunSummary:
    """Takes up what was left unfinished, polls once, works the queue until it is empty.

    `bench`: one with another client or patience than the usual. Raises UsageError, WorkerBusy, NotAuthorized; HubUnavailable if
    the listing failed (after the queue is worked).
    """
    with _working(bench or Bench(settings, Hub(settings.endpoint, token))) as bench:
        shift = Shift(bench, observer or Observer())
        missed: HubUnavailable | None = None
        try:
            shift.poll()
        except HubUnavailable as error:
            missed = error
        shift.observe(until=lambda: not shift.active)
        if missed is not None:
            raise missed
        return shift.summary()


def run_forever(
    settings: Settings, token: str | bool | None = None, observer: Observer | None = None, bench: Bench | None = None
) -> RunSummary:
    """Polls every `watch.interval_seconds` and works the queue until SIGTERM or SIGINT: the first lets the running step end, the
    second does not (it starts again next time). Off the main thread, where no signal arrives, `bench.stop` and `bench.halt` do.

    Returns the last poll's summary. Raises UsageError, WorkerBusy, NotAuthorized.
    """
    with _working(bench or Bench(settings, Hub(settings.endpoint, token))) as bench:
        shift = Shift(bench, observer or Observer())
        while not bench.stop.is_set():
            due = time.monotonic() + settings.watch.interval_seconds
            try:
                shift.poll()
            except HubUnavailable as error:
                log.warning("no poll this time: %s", error)
            shift.observe(until=partial(_is_past, due))
        return shift.summary()


class Shift:
    """What one worker sees from one poll to the next."""

    def __init__(self, bench: Bench, observer: Observer) -> None:
        self.bench = bench
        self.observer = observer
        self.decisions: list[Decision] = []
        self.jobs: dict[str, JobStatus] = {}

    @property
    def active(self) -> list[JobStatus]:
        return [status for status in self.jobs.values() if status.active]

    def poll(self) -> None:
        """Takes up what failed for want of a Hub, decides on every new or changed model. What it has looked at it remembers
        only when all are decided on."""
        settings = self.bench.settings
        self.decisions.clear()
        self.jobs = {status.id: status for status in self.active}
        for status in queue.take_up_again(settings):
            log.info("%s %s: taken up again after: %s", status.id, status.repo_id, status.error)
        marks = Marks.read(settings)
        for info in candidates(self.bench.hub, settings.watch, marks):
            if self.bench.stop.is_set():
                return
            decision = consider(settings, self.bench.hub, info)
            log.info("%s: %s: %s", info.id, "admitted" if decision.admitted else "declined", decision.reason)
            self.decisions.append(decision)
            self.observer.decision(decision)
            marks.decided(info, decision.later)
        marks.write(settings)

    def observe(self, until: Callable[[], bool]) -> None:
        """Watches the queue (DBOS works it in threads of its own) until `until` or, when asked to stop, until no step runs."""
        while True:
            self._look()
            if until():
                break
            if self.bench.stop.is_set() and (self.bench.parked.is_set() or not _running(self.active)):
                break
            time.sleep(POLL_SECONDS)
        _sweep(self.bench.settings)

    def _look(self) -> None:
        found = {status.id: status for status in queue.list_jobs(self.bench.settings, active=True)}
        ended = [status.id for status in self.active if status.id not in found]
        found |= {status.id: status for status in queue.list_jobs(self.bench.settings, ids=ended)} if ended else {}
        for status in sorted(found.values(), key=lambda status: status.created_at):
            if self.jobs.get(status.id) != status:
                self.jobs[status.id] = status
                self.observer.job(status)

    def summary(self) -> RunSummary:
        interrupted = self.bench.stop.is_set() and bool(self.active)
        return RunSummary(decisions=tuple(self.decisions), jobs=tuple(self.jobs.values()), interrupted=interrupted)


def _is_past(due: float) -> bool:
    return time.monotonic() >= due


@contextmanager
def _working(bench: Bench) -> Iterator[Bench]:
    """This process as the one worker of its state folder."""
    settings, watch = bench.settings, bench.settings.watch
    if not (watch.organisations or watch.tags or watch.models):
        raise UsageError("nothing to watch; set watch.organisations, watch.tags or watch.models in hubquant.toml")
    if not settings.publish.namespace:
        raise UsageError("no namespace to publish to; set publish.namespace in hubquant.toml")
    with _alone(settings), database.logged(settings):
        bench.hub.check_can_write(settings.publish.namespace)
        database.prepare(settings)
        _sweep(settings)
        at(bench)
        with _signals(bench), database.running(settings):
            try:
                yield bench
            finally:
                _stop(bench)


def _stop(bench: Bench) -> None:
    """Lets no thread of DBOS outlive the database connection."""
    bench.stop.set()
    bench.halt.set()
    deadline = time.monotonic() + STOP_SECONDS
    while not bench.parked.is_set() and time.monotonic() < deadline:
        if not _running(queue.list_jobs(bench.settings, active=True)):
            return
        time.sleep(0.1)


def _running(jobs: list[JobStatus]) -> bool:
    return any(status.state == "running" for status in jobs)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Two workers on one state folder would do the same steps side by side. The lock ends with the process, however it ends."""
    settings.state.mkdir(parents=True, exist_ok=True)
    with (settings.state / "worker.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise WorkerBusy(
                f"another worker (process {owner}) works on {settings.state}; stop it, or set another state folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _signals(bench: Bench) -> Iterator[None]:
    """SIGTERM and SIGINT ask the worker to stop. Only the main thread may say so; elsewhere the caller sees to it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        (bench.halt if bench.stop.is_set() else bench.stop).set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sweep(settings: Settings) -> None:
    """Deletes the work folders that no job will go on from. One that failed for want of a Hub or of a token's rights will."""
    folders = [folder for folder in (settings.state / "work").glob("*") if folder.is_dir()]
    known = {status.id: status for status in queue.list_jobs(settings, ids=[folder.name for folder in folders])} if folders else {}
    for folder in folders:
        status = known.get(folder.name)
        if status is None or not (status.active or (status.state == "failed" and status.error_type in RESUMABLE)):
            shutil.rmtree(folder, ignore_errors=True)
