"""The queue from outside, on a real database, without a worker."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hubquant.artifact import Base
from hubquant.bot import database, queue
from hubquant.bot.job import Job
from hubquant.config import Settings
from hubquant.errors import HubquantError
from hubquant.recipe import Recipe


def job(name: str = "model", requested_by: str = "watcher") -> Job:
    base = Base(repo_id=f"org/{name}", revision="a" * 40, fingerprint="f" * 64)
    return Job(base=base, recipe=Recipe(), namespace="bot", requested_by=requested_by)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state")


def test_before_anything_was_asked_there_are_no_jobs_and_no_database(settings: Settings) -> None:
    assert queue.list_jobs(settings) == []
    assert queue.find(settings, job().id) is None
    with pytest.raises(HubquantError, match="no job has an id that starts with 'ab'"):
        queue.cancel(settings, "ab")
    assert not settings.state.exists()


def test_the_same_work_is_queued_once(settings: Settings) -> None:
    first = queue.enqueue(settings, job())
    assert (first.state, first.repo_id, first.requested_by) == ("queued", "org/model", "watcher")
    again = queue.enqueue(settings, job(requested_by="ada"))
    assert again == first
    assert queue.list_jobs(settings) == [first]
    assert queue.find(settings, job().id) == first


def test_jobs_are_listed_newest_first_and_by_state(settings: Settings) -> None:
    for name in ("one", "two", "three"):
        queue.enqueue(settings, job(name))
    queue.cancel(settings, job("two").id)
    assert [status.repo_id for status in queue.list_jobs(settings)] == ["org/three", "org/two", "org/one"]
    assert [status.repo_id for status in queue.list_jobs(settings, active=True)] == ["org/three", "org/one"]


def test_cancel_and_retry(settings: Settings) -> None:
    queued = queue.enqueue(settings, job())
    assert queue.cancel(settings, queued.id[:6]).state == "cancelled"
    with pytest.raises(HubquantError, match="is cancelled, there is nothing to cancel"):
        queue.cancel(settings, queued.id)
    assert queue.enqueue(settings, job()).state == "cancelled", "what a person cancelled is not queued again unasked"
    assert queue.retry(settings, queued.id[:6]).state == "queued"
    with pytest.raises(HubquantError, match="is queued; cancel it first"):
        queue.retry(settings, queued.id)


def test_ids_that_name_none_or_several(settings: Settings) -> None:
    for number in range(20):  # more than there are hex digits, so two ids share their first
        queue.enqueue(settings, job(str(number)))
    firsts = [status.id[0] for status in queue.list_jobs(settings)]
    shared = next(digit for digit in firsts if firsts.count(digit) > 1)
    with pytest.raises(HubquantError, match=f"jobs have an id that starts with '{shared}'"):
        queue.cancel(settings, shared)
    with pytest.raises(HubquantError, match="no job has an id that starts with 'x'"):
        queue.retry(settings, "x")
    with pytest.raises(HubquantError, match="no job has an id"):
        queue.cancel(settings, "")


def test_from_another_process_at_the_same_time(settings: Settings) -> None:
    """Two processes put the same job and one of their own in; nothing is lost, nothing doubled."""
    code = (
        "import sys; from pathlib import Path; from hubquant.bot import queue; from hubquant.bot.job import Job;"
        "from hubquant.config import Settings;"
        "[queue.enqueue(Settings(state=Path(sys.argv[1])), Job.read(text)) for text in sys.argv[2:]]"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(settings.state), job("both").canonical_json(), job(own).canonical_json()])
        for own in ("left", "right")
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert sorted(status.repo_id for status in queue.list_jobs(settings)) == ["org/both", "org/left", "org/right"]


def test_the_database_is_wal_and_says_nothing_on_the_console(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    queue.enqueue(settings, job())
    [file] = settings.state.glob("*.sqlite")
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert capfd.readouterr() == ("", "")


def test_no_secret_reaches_the_database(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_do_not_store_me")
    queue.enqueue(settings, job())
    stored = b"".join(file.read_bytes() for file in settings.state.iterdir() if file.is_file())
    assert b"org/model" in stored
    assert os.environ["HF_TOKEN"].encode() not in stored


def test_what_is_stored_is_json_not_pickle(settings: Settings) -> None:
    queued = queue.enqueue(settings, job())
    with database.client(settings) as client:
        [workflow] = client.list_workflows(workflow_ids=[queued.id])
    assert workflow.input is not None
    assert list(workflow.input["args"]) == [job().canonical_json()]
    connection = sqlite3.connect(next(iter(settings.state.glob("*.sqlite"))))
    assert connection.execute("SELECT serialization FROM workflow_status").fetchall() == [("portable_json",)]
    connection.close()
