"""Tab "Queue": what the bot's queue holds, as it is now."""

from collections.abc import Callable
from datetime import UTC, datetime

from cached import Cached
from tabs import queue as tab

from hubquant.bot import intake, queue
from hubquant.bot.heavy import Progress
from hubquant.bot.job import Job
from hubquant.bot.queue import JobStatus
from hubquant.config import Settings
from hubquant.hub.client import Hub

AddModel = Callable[..., str]


def test_an_empty_queue_says_so(settings: Settings) -> None:
    assert "No job yet" in tab.tab(settings, "http://hub")()


def test_a_job_is_seen_from_its_request_to_its_cancellation(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    look = tab.tab(settings, hub.endpoint)
    shown = Cached(lambda: queue.list_jobs(settings), seconds=0)
    job = intake.request(settings, hub, add_model("one"), ("gguf-q8_0",), "@ada")
    assert isinstance(job, Job)
    html = look()
    assert f'data-job="{job.id}"' in html
    assert ">queued<" in html
    assert "@ada" in html
    assert f'href="{hub.endpoint}/demo-org/one"' in html
    queue.cancel(settings, job.id)
    assert ">cancelled<" in tab.show(shown, hub.endpoint)


def test_steps_progress_results_and_errors() -> None:
    now = datetime(2026, 5, 4, 3, 2, tzinfo=UTC)
    common = {"requested_by": "watcher", "created_at": now}
    jobs = [
        JobStatus(
            id="1", repo_id="o/a", state="running", step="quantize", progress=Progress(stage="quantize", done=3, total=16), **common
        ),
        JobStatus(id="2", repo_id="o/b", state="failed", error="the shard <script> is missing", **common),
        JobStatus(id="3", repo_id="o/c", state="done", published=("bot/c-AWQ",), refused={"gguf-q8_0": "KL 0.2 > 0.1"}, **common),
    ]
    html = tab.show(Cached(lambda: jobs, seconds=60), "http://hub")
    assert "one pass over the layers" in html
    assert '<progress value="3" max="16">' in html
    assert "the shard &lt;script&gt; is missing" in html
    assert '<a href="http://hub/bot/c-AWQ"' in html
    assert "gguf-q8_0 not published: KL 0.2 &gt; 0.1" in html
    assert "2026-05-04 03:02 UTC" in html


def test_only_the_newest_are_shown() -> None:
    job = JobStatus(id="1", repo_id="o/a", state="done", requested_by="watcher", created_at=datetime.now(UTC))
    jobs = [job] * (tab.NEWEST + 9)
    assert tab.show(Cached(lambda: jobs, seconds=60), "http://hub").count("data-job") == tab.NEWEST
