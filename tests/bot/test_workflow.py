"""Steps that survive: a stop, lost files, a cancellation, a Hub that fails, a gate that refuses. With the real heavy steps."""

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubquant.artifact import Base, Evaluation, Protocol, Report, Verdict
from hubquant.bot import database, queue, worker
from hubquant.bot.intake import consider, request
from hubquant.bot.job import Job
from hubquant.bot.policy import Decision
from hubquant.bot.queue import JobStatus
from hubquant.bot.worker import Observer
from hubquant.bot.workflow import MAX_RECOVERIES, Bench, Work
from hubquant.config import Settings
from hubquant.errors import HubUnavailable, NotAuthorized, QualityRefused, UsageError, WorkerBusy
from hubquant.hub.client import Hub
from hubquant.hub.local.server import LocalHub
from hubquant.hub.retry import Retry
from hubquant.recipe import QUALITY_LIMITS, Limit, Recipe

AddModel = Callable[..., str]
TOKEN = "hf_demo_bot"
pytestmark = pytest.mark.timeout(900)  # heavy steps in subprocesses, on a machine that may be busy
RUN_ONCE = """
import sys
from pathlib import Path
from hubquant.bot import worker
from hubquant.config import Settings
settings = Settings.model_validate_json(Path(sys.argv[1]).read_text())
summary = worker.run_once(settings, "hf_demo_bot")
print(summary.model_dump_json())
"""


def steps(settings: Settings, word: str) -> list[str]:
    """The names of the steps that the bot's log says were started or finished, in order."""
    lines = (settings.state / "bot.log").read_text().splitlines()
    return [line.split(f": {word} ")[1] for line in lines if f": {word} " in line]


@pytest.fixture
def process(settings: Settings, tmp_path: Path, local_hub: LocalHub, add_real_model: AddModel) -> Iterator["subprocess.Popen[str]"]:
    """The bot's run_once as a process of its own, with a model to work on."""
    add_real_model(local_hub.url, "tiny-llama")
    file = tmp_path / "settings.json"
    file.write_text(settings.model_dump_json())
    process = subprocess.Popen([sys.executable, "-c", RUN_ONCE, str(file)], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


def bench(settings: Settings, *patience: float) -> Bench:
    """A worker's bench whose client gives up after two attempts; a step then waits `patience` seconds before each further try."""
    return Bench(settings, Hub(settings.endpoint, TOKEN, retry=Retry(attempts=2, base_seconds=0.01)), patience=patience)


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_a_stop_waits_for_the_step_lost_files_are_made_again_and_a_hub_that_was_away_is_tried_again(
    process: "subprocess.Popen[str]", settings: Settings, local_hub: LocalHub
) -> None:
    until(lambda: any(job.step == "quantize" for job in queue.list_jobs(settings)))
    with pytest.raises(WorkerBusy, match=rf"another worker \(process {process.pid}\) works on .*state; stop it"):
        worker.run_once(settings, TOKEN)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert json.loads(output)["interrupted"]
    assert steps(settings, "finish") == ["snapshot", "quantize"]
    [job] = queue.list_jobs(settings)
    assert job.state == "running", "its next step is to be taken up, not to be recorded as failed"

    shutil.rmtree(settings.state / "work")  # as on another machine: the records say that both steps are done
    local_hub.faults.inject("/commit/main$", "POST", status=503, times=2)
    [failed] = worker.run_once(settings, TOKEN, bench=bench(settings)).jobs
    assert steps(settings, "start").count("snapshot") == 1
    assert steps(settings, "start").count("quantize") == 1
    assert steps(settings, "start")[2] == "evaluate"
    assert (failed.state, failed.error_type, failed.may_pass) == ("failed", "HubUnavailable", True)
    assert "\n" not in failed.error
    assert (settings.state / "work" / failed.id / "out" / "hubquant.json").exists(), "hours of work are kept"
    [leftover] = HfApi(endpoint=local_hub.url, token=TOKEN).list_models(author="demo-bot")
    assert leftover.private

    summary = worker.run_once(settings, TOKEN, bench=bench(settings))
    assert summary.decisions == (), "decided on before"
    assert [(job.id, job.state, len(job.published)) for job in summary.jobs] == [(failed.id, "done", 2)]
    assert steps(settings, "start").count("evaluate") == 1
    public = [info.id for info in HfApi(endpoint=local_hub.url, token=False).list_models(author="demo-bot")]
    assert sorted(public) == sorted(summary.published)


def test_cancel_ends_a_heavy_step_and_retry_goes_on_through_faults_and_the_gate(
    settings: Settings, local_hub: LocalHub, add_real_model: AddModel
) -> None:
    impossible = Limit(perplexity_ratio=0.5, mean_kl=0.0, top1_agreement=1.0)
    recipe = settings.recipe.model_copy(update={"limits": {**QUALITY_LIMITS, 4: impossible}})
    settings = settings.model_copy(update={"recipe": recipe})
    add_real_model(local_hub.url, "tiny-llama")
    cancelled_at: list[float] = []

    def cancel(status: JobStatus) -> None:
        if status.step == "quantize" and not cancelled_at:
            cancelled_at.append(time.monotonic())
            queue.cancel(settings, status.id)

    summary = worker.run_once(settings, TOKEN, Observer(job=cancel))
    assert [job.state for job in summary.jobs] == ["cancelled"]
    assert time.monotonic() - cancelled_at[0] < 15
    assert steps(settings, "finish") == ["snapshot"]

    [job] = summary.jobs
    assert queue.retry(settings, job.id).state == "queued"
    local_hub.faults.inject("/commit/main$", "POST", status=503, times=2)  # both attempts: the step itself has to be patient
    summary = worker.run_once(settings, TOKEN, bench=bench(settings, 0.1))
    [done] = summary.jobs
    assert (done.id, done.state, done.error) == (job.id, "done", "")
    assert done.published == ("demo-bot/tiny-llama-GGUF",)
    assert list(done.refused) == ["gptq-int4-g128"]
    assert "perplexity" in done.refused["gptq-int4-g128"]
    assert steps(settings, "start").count("snapshot") == 1, "a retry goes on where it stopped"
    assert [info.id for info in HfApi(endpoint=local_hub.url, token=TOKEN).list_models(author="demo-bot")] == list(done.published)


def test_a_listing_that_fails_is_raised_after_the_queue_is_worked(settings: Settings, local_hub: LocalHub) -> None:
    local_hub.faults.inject("^/api/models$", "GET", status=503, times=9)
    with pytest.raises(HubUnavailable, match="try again later"):
        worker.run_once(settings, TOKEN, bench=bench(settings))


def test_who_may_not_write_is_told_before_any_work(settings: Settings, local_hub: LocalHub) -> None:
    with pytest.raises(NotAuthorized, match="can only read"):
        worker.run_once(settings, "hf_reader")
    with pytest.raises(NotAuthorized, match="demo-bot"):
        worker.run_once(settings, "hf_demo_org")
    with pytest.raises(NotAuthorized):
        worker.run_once(settings, False)


def test_settings_that_watch_or_publish_nothing(settings: Settings) -> None:
    with pytest.raises(UsageError, match="nothing to watch"):
        worker.run_once(settings.model_copy(update={"watch": type(settings.watch)()}), TOKEN)
    with pytest.raises(UsageError, match="no namespace"):
        worker.run_once(settings.model_copy(update={"publish": type(settings.publish)()}), TOKEN)


def test_run_forever_polls_again_until_it_is_stopped(
    settings: Settings, local_hub: LocalHub, org: HfApi, add_model: AddModel
) -> None:
    """In a thread, until it is told to stop."""
    settings = settings.model_copy(update={"watch": settings.watch.model_copy(update={"interval_seconds": 1})})
    heard: list[JobStatus] = []
    added = threading.Event()

    def gone(decision: Decision) -> None:
        added.wait(30)
        if decision.admitted:  # it may be seen before its files are there, and is refused until they are
            org.delete_repo(decision.repo_id)

    observer = Observer(decision=gone, job=heard.append)
    forever = bench(settings)
    thread = threading.Thread(target=worker.run_forever, args=(settings, TOKEN, observer, forever))
    thread.start()
    try:
        until(lambda: len(local_hub.requests.find("^/api/models$", "GET")) > 0)
        add_model("late")  # and gone before its job starts
        added.set()
        until(lambda: bool(heard) and heard[-1].state == "failed")
    finally:
        forever.stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert heard[-1].error


def test_people_s_requests_run_before_what_the_watcher_found(settings: Settings, hub: Hub, org: HfApi, add_model: AddModel) -> None:
    found = [consider(settings, hub, hub.model_info(add_model(name))) for name in ("one", "two")]
    asked = request(settings, hub, add_model("three"), (), "ada")
    assert all(decision.admitted for decision in found)
    assert isinstance(asked, Job)
    for name in ("one", "two", "three"):
        org.delete_repo(f"demo-org/{name}")  # so that the jobs are short
    summary = worker.run_once(settings, TOKEN)
    assert [job.state for job in summary.jobs] == ["failed"] * 3
    log = (settings.state / "bot.log").read_text()
    assert re.findall(r"demo-org/(\w+): start snapshot", log) == ["three", "one", "two"]


def test_a_job_that_keeps_killing_its_worker_is_set_aside(settings: Settings, hub: Hub, org: HfApi, add_model: AddModel) -> None:
    for name in ("deadly", "other"):
        consider(settings, hub, hub.model_info(add_model(name)))
        org.delete_repo(f"demo-org/{name}")
    deadly, other = sorted(queue.list_jobs(settings), key=lambda status: status.repo_id)
    left_by_a_crash = "status = 'PENDING', executor_id = 'worker', application_version = ?, recovery_attempts = ?"
    with sqlite3.connect(settings.state / "bot.sqlite") as connection:
        connection.execute(
            f"UPDATE workflow_status SET {left_by_a_crash} WHERE workflow_uuid = ?",
            (database.APPLICATION_VERSION, MAX_RECOVERIES + 1, deadly.id),
        )
    connection.close()
    worker.run_once(settings, TOKEN)
    status = queue.find(settings, deadly.id)
    assert status is not None
    assert (status.state, status.active) == ("failed", False)
    assert "the worker died" in status.error
    assert [job.state for job in queue.list_jobs(settings, ids=[other.id])] == ["failed"], "the queue goes on"


def test_a_bug_in_a_step_fails_the_job_with_a_sentence_and_leaves_its_traceback_in_the_log(
    settings: Settings, hub: Hub, add_model: AddModel
) -> None:
    decision = consider(settings, hub, hub.model_info(add_model("one")))
    assert decision.job is not None
    in_the_way = settings.state / "work" / decision.job.id
    in_the_way.parent.mkdir()
    in_the_way.write_text("a file where the job's folder should be: nobody foresaw that")
    [job] = worker.run_once(settings, TOKEN).jobs
    assert (job.state, job.error_type) == ("failed", "HubquantError")
    assert job.error.startswith("snapshot failed with a bug in hubquant: ")
    assert job.error.endswith("the traceback is in bot.log")
    assert "Traceback" in (settings.state / "bot.log").read_text()


def test_no_variant_good_enough_publishes_nothing(tmp_path: Path, settings: Settings) -> None:
    """Straight on the plan: the report of a pass whose only variant failed the gate."""
    base = Base(repo_id="demo-org/tiny-llama", revision="a" * 40, fingerprint="f" * 64)
    job = Job(base=base, recipe=Recipe(variants=("gguf-q8_0",)), namespace="demo-bot")
    work = Work(Bench(settings, Hub(settings.endpoint, TOKEN)), job)
    protocol = Protocol(
        name="gptq-512", window=512, stride=512, bos="as tokenized", scored="all", text="t", text_sha256="e" * 64, n_tokens=9
    )
    numbers = {"perplexity": 99.0, "base_perplexity": 9.0, "mean_kl": 2.0, "p99_kl": 3.0, "p999_kl": 4.0, "max_kl": 5.0}
    report = Report(
        hubquant_version="0.1.0",
        versions={},
        base=base,
        recipe=job.recipe,
        artifacts=(),
        evaluations=(Evaluation(variant="gguf-q8_0", protocol=protocol, top1_agreement=0.1, **numbers),),
        verdicts=(Verdict(variant="gguf-q8_0", check="perplexity", value=11.0, limit=1.01, passed=False, reason="11 > 1.01"),),
    )
    work.out.mkdir(parents=True)
    (work.out / "hubquant.json").write_text(report.model_dump_json())
    with pytest.raises(QualityRefused, match="no variant of demo-org/tiny-llama is good enough"):
        work.plan()
