"""The durable workflow of one job: snapshot → quantize → evaluate → publish, one step per repo → finish.

A step that is recorded as finished is not run again, after a crash or on another machine. Its files may be gone then: every
step makes sure of what it needs (`_need_…`), and repeats harmlessly.
"""

import logging
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NoReturn, TypeVar

from dbos import DBOS, PortableWorkflowError, error
from pydantic import ValidationError

from hubquant import errors
from hubquant.artifact import Report
from hubquant.bot import database, heavy, queue
from hubquant.bot.job import Job
from hubquant.config import Settings
from hubquant.errors import HubquantError, HubUnavailable, QualityRefused
from hubquant.hub import publish, snapshot
from hubquant.hub.client import Hub
from hubquant.hub.records import Records

T = TypeVar("T")
# The Hub's client has already tried for minutes when it raises HubUnavailable; the step waits longer before each further try.
PATIENCE_SECONDS = (30.0, 120.0, 600.0)
CANCEL_CHECK_SECONDS = 1.0
PROGRESS_SECONDS = 1.0
# A job that kills its worker (out of memory) this often is set aside.
MAX_RECOVERIES = 20
log = logging.getLogger(__name__)


class Stopped(BaseException):
    """The worker is asked to stop. Not an Exception, so that DBOS records nothing: the job goes on at the next start."""


@dataclass
class Bench:
    """What a worker needs beside the job; given to the workflow through `at`, since only the job itself is stored.

    `stop`: no further step begins. `halt`: the running step is given up, too. `parked`: a job has come to such a halt.
    """

    settings: Settings
    hub: Hub
    stop: Event = field(default_factory=Event)
    halt: Event = field(default_factory=Event)
    parked: Event = field(default_factory=Event)
    command: tuple[str, ...] = (sys.executable, "-m", "hubquant")
    patience: tuple[float, ...] = PATIENCE_SECONDS

    def folder(self, job_id: str) -> Path:
        return self.settings.state.resolve() / "work" / job_id

    def park(self) -> NoReturn:
        self.parked.set()
        raise Stopped


_bench: Bench | None = None


def at(bench: Bench | None) -> None:
    """Names the bench of this process's worker; DBOS runs one worker per process."""
    global _bench
    _bench = bench


@DBOS.workflow(name=database.WORKFLOW, max_recovery_attempts=MAX_RECOVERIES)
def make_variants(job_json: str) -> dict[str, Any]:
    """The whole line for one job. Returns the repos published and, per variant, why the gate refused it."""
    assert _bench is not None, "a worker names its bench before DBOS is launched"
    work = Work(_bench, Job.read(job_json))
    work.step("snapshot", work.snapshot)
    work.step("quantize", work.quantize)
    work.step("evaluate", work.evaluate)
    plan = work.step("plan", work.plan)
    for repo_id in plan["publish"]:
        work.step(f"publish {repo_id}", partial(work.publish, repo_id))
    work.step("finish", work.finish)
    return {"published": plan["publish"], "refused": plan["refused"]}


class Work:
    """One job on one bench. Step results are small: names, never contents."""

    def __init__(self, bench: Bench, job: Job) -> None:
        self.bench = bench
        self.job = job
        self.folder = bench.folder(job.id)
        self.model = self.folder / "model"
        self.out = self.folder / "out"
        self._checked = 0.0

    def step(self, name: str, body: Callable[[], T]) -> T:
        """Runs `body` as the durable step `name`, unless its result is on record.

        Raises one of our errors, also when the failure is on record.
        """
        try:
            return DBOS.run_step({"name": name}, self._logged, name, body)
        except PortableWorkflowError as recorded:
            kind = getattr(errors, recorded.name, HubquantError)
            raise kind(recorded.message) from None

    def _logged(self, name: str, body: Callable[[], T]) -> T:
        if self.bench.stop.is_set():
            self.bench.park()
        log.info("%s %s: start %s", self.job.id, self.job.base.repo_id, name)
        DBOS.set_event(queue.EVENT, {"step": name})
        try:
            result = self._patiently(body)
        except HubquantError as failure:
            log.error("%s %s: %s failed: %s", self.job.id, self.job.base.repo_id, name, failure)
            raise type(failure)(str(failure)) from None  # what led to it stays in the log: the record keeps one sentence
        except Exception as bug:  # the edge of the job: the queue goes on
            log.exception("%s %s: %s failed with a bug", self.job.id, self.job.base.repo_id, name)
            what = f"{type(bug).__name__}: {bug}"
            raise HubquantError(f"{name} failed with a bug in hubquant: {what}; the traceback is in bot.log") from None
        log.info("%s %s: finish %s", self.job.id, self.job.base.repo_id, name)
        return result

    def _patiently(self, body: Callable[[], T]) -> T:
        """Own repetition, not DBOS's: that one ends in "exceeded its maximum of N retries" and cannot be stopped while it waits."""
        for seconds in self.bench.patience:
            try:
                return body()
            except HubUnavailable as failure:
                log.warning("%s: %s; again in %d s", self.job.id, failure, seconds)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                self.check()
                if self.bench.stop.wait(heavy.POLL_SECONDS):
                    self.bench.park()
        return body()

    def check(self) -> None:
        """Raises if this job was cancelled or the worker must stop at once."""
        if self.bench.halt.is_set():
            self.bench.park()
        if time.monotonic() - self._checked < CANCEL_CHECK_SECONDS:
            return
        self._checked = time.monotonic()
        status = DBOS.get_workflow_status(self.job.id)
        if status is not None and status.status == "CANCELLED":
            raise error.DBOSWorkflowCancelledError(f"job {self.job.id} was cancelled")

    # -- the steps

    def snapshot(self) -> str:
        self._need_model()
        return self.job.base.revision

    def quantize(self) -> list[str]:
        return [artifact.variant for artifact in self._need_artifacts().artifacts]

    def evaluate(self) -> list[str]:
        report = self._need_evaluation()
        return [artifact.variant for artifact in report.artifacts if report.passed(artifact.variant)]

    def plan(self) -> dict[str, Any]:
        report = self._need_evaluation()
        refused = publish.refused(report)
        repo_ids = [repo.repo_id for repo in publish.plan(report, self.job.namespace)]
        if not repo_ids:
            reasons = "; ".join(f"{variant}: {reason}" for variant, reason in refused.items())
            raise QualityRefused(f"no variant of {self.job.base.repo_id} is good enough: {reasons}")
        return {"publish": repo_ids, "refused": refused}

    def publish(self, repo_id: str) -> str:
        report = self._need_evaluation()
        repo = next(repo for repo in publish.plan(report, self.job.namespace) if repo.repo_id == repo_id)
        self._need_model()
        records = Records(self.bench.settings.state / queue.RECORDS)
        publish.publish(self.bench.hub, repo, report, self.out, self.bench.settings.publish, self.model, records)
        return repo_id

    def finish(self) -> str:
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.folder.name

    # -- what a step needs, made again if it is not there

    def _need_model(self) -> None:
        complete = self.model / ".complete"
        if not complete.is_file():
            snapshot.download(self.bench.hub, self.job.base, self.model)
            complete.touch()

    def _need_artifacts(self) -> Report:
        if (report := self._report()) is not None:
            return report
        self._need_model()
        recipe, base = self.folder / "recipe.json", self.folder / "base.json"
        recipe.write_text(self.job.recipe.canonical_json())
        base.write_text(self.job.base.model_dump_json())
        files = ["--recipe", str(recipe), "--base", str(base)]
        self._run("quantize", [str(self.model), "-o", str(self.out), *files, "--no-evaluate", "--replace"])
        return Report.read(self.out)

    def _need_evaluation(self) -> Report:
        report = self._need_artifacts()
        if report.verdicts:
            return report
        self._need_model()
        self._run("evaluate", [str(self.out), "--base", str(self.model)])
        return Report.read(self.out)

    def _report(self) -> Report | None:
        """The output folder's report if all its files are there."""
        try:
            report = Report.read(self.out)
        except (FileNotFoundError, ValidationError):
            return None
        files = [self.out / artifact.folder / name for artifact in report.artifacts for name in artifact.files]
        return report if all(file.is_file() for file in files) else None

    def _run(self, name: str, arguments: list[str]) -> None:
        told = 0.0

        def tell(progress: heavy.Progress) -> None:
            nonlocal told
            if progress.done >= progress.total or time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                DBOS.set_event(queue.EVENT, {"step": name, "progress": progress.model_dump()})

        heavy.run([*self.bench.command, name, *arguments, "--json"], self.folder, name, tell, self.check)
