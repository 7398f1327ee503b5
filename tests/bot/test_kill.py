"""kill -9 at random moments: finished steps are not redone, and what is published in the end is as if nothing had happened.

`make test-kill` runs the long form: twenty rounds on the whole bundled model.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from huggingface_hub import HfApi

from hubquant.bot import database, queue
from hubquant.bot.queue import JobStatus
from hubquant.config import Settings
from hubquant.hub.client import Hub
from hubquant.hub.local.server import LocalHub
from hubquant.hub.publish import leftovers
from hubquant.hub.records import Records

TOKEN = "hf_demo_bot"
RUN_ONCE = """
import sys
from pathlib import Path
from hubquant.bot import worker
from hubquant.config import Settings
worker.run_once(Settings.model_validate_json(Path(sys.argv[1]).read_text()), "hf_demo_bot")
"""
LOGGED = re.compile(r"^(?P<time>\S+ \S+) INFO hubquant\.bot\.workflow \w+ \S+: (?P<word>start|finish) (?P<step>.+)$")
REPOS = ["demo-bot/tiny-llama-GGUF", "demo-bot/tiny-llama-GPTQ-Int4"]
STEPS = ["snapshot", "quantize", "evaluate", "plan", *(f"publish {repo_id}" for repo_id in reversed(REPOS)), "finish"]
# How the process dies: it alone; its process group; it and every process below it at the same moment.
HOW = ("parent", "group", "tree")


@dataclass
class Round:
    """One Hub and one state folder, on which the bot is started, killed and started again."""

    folder: Path
    hub: LocalHub
    settings: Settings
    log_lines: int = 0

    def start(self) -> "subprocess.Popen[bytes]":
        file = self.folder / "settings.json"
        file.write_text(self.settings.model_dump_json())
        return subprocess.Popen([sys.executable, "-c", RUN_ONCE, str(file)], start_new_session=True)

    def log(self) -> list[re.Match[str]]:
        """The lines of the bot's log that tell of steps, since the last `turn_page`."""
        return [match for match in map(LOGGED.match, self._lines()[self.log_lines :]) if match]

    def turn_page(self) -> list[str]:
        """The steps started since the last call."""
        started = [match["step"] for match in self.log() if match["word"] == "start"]
        self.log_lines = len(self._lines())
        return started

    def _lines(self) -> list[str]:
        file = self.settings.state / "bot.log"
        return file.read_text().splitlines() if file.exists() else []

    def recorded(self) -> list[str]:
        """The steps whose results the database holds. Read from a copy, so that a database left by a kill stays as it was left."""
        if not database.exists(self.settings):
            return []
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for file in self.settings.state.glob("bot.sqlite*"):
            shutil.copy(file, copy)
        settings = self.settings.model_copy(update={"state": copy})
        with database.client(settings) as client:
            return [step["function_name"] for job in queue.list_jobs(settings) for step in client.list_workflow_steps(job.id)]

    def finish(self) -> JobStatus:
        """Starts the bot and lets it end."""
        assert self.start().wait(600) == 0
        [job] = queue.list_jobs(self.settings)
        return job


def published(hub: LocalHub) -> dict[str, dict[str, str]]:
    """Everything in the bot's namespace as anybody may see it: repo → file → git or LFS hash, and how many commits it took.

    Of the card and the manifest only what does not tell how long it took.
    """
    api = HfApi(endpoint=hub.url, token=False)
    found: dict[str, dict[str, str]] = {}
    for info in api.list_models(author="demo-bot"):
        full = api.model_info(info.id, files_metadata=True)
        files = {s.rfilename: (s.lfs.sha256 if s.lfs else s.blob_id) or "" for s in full.siblings or ()}
        manifest = json.loads(Path(api.hf_hub_download(info.id, "hubquant.json")).read_text())
        timeless = {key: manifest[key] for key in ("base", "recipe", "evaluations", "verdicts", "hubquant_version")}
        timeless["files"] = {name: value for name, value in manifest["files"].items() if name != "README.md"}
        assert set(manifest["files"]) == set(files) - {"hubquant.json", ".gitattributes"}, "complete"
        files |= {"README.md": "", "hubquant.json": json.dumps(timeless, sort_keys=True)}
        files["commits"] = str(len(api.list_repo_commits(info.id)))
        found[info.id] = files
    return found


@dataclass
class Undisturbed:
    """A run that nothing disturbed: what it published, how long it took, when each step began and ended (seconds)."""

    repos: dict[str, dict[str, str]]
    seconds: float
    spans: dict[str, tuple[float, float]]


def undisturbed_run(round_: Round) -> Undisturbed:
    began = time.time()
    job = round_.finish()
    assert (job.state, sorted(job.published)) == ("done", REPOS)
    moments: dict[str, list[float]] = {}
    for match in round_.log():
        moment = time.mktime(time.strptime(match["time"].split(",")[0], "%Y-%m-%d %H:%M:%S"))
        moments.setdefault(match["step"], []).append(moment + int(match["time"].split(",")[1]) / 1000 - began)
    assert list(moments) == STEPS
    return Undisturbed(published(round_.hub), time.time() - began, {step: (first, last) for step, (first, last) in moments.items()})


@pytest.fixture
def new_round(tmp_path: Path, make_settings: Callable[[Path, str], Settings]) -> Iterator[Callable[[Path], Round]]:
    """new_round(model): a Hub with that model, the same commit each time, and a bot that has not run yet."""
    hubs: list[LocalHub] = []

    def new(model: Path) -> Round:
        prepared, folder = tmp_path / "prepared", tmp_path / f"round{len(hubs)}"
        if not prepared.exists():
            with LocalHub(prepared) as hub:
                org = HfApi(endpoint=hub.url, token="hf_demo_org")
                org.create_repo("demo-org/tiny-llama")
                org.upload_folder(repo_id="demo-org/tiny-llama", folder_path=model)
        shutil.copytree(prepared, folder / "hub")
        hubs.append(LocalHub(folder / "hub").start())
        return Round(folder, hubs[-1], make_settings(folder / "state", hubs[-1].url))

    yield new
    for hub in hubs:
        hub.stop()


def kill(process: "subprocess.Popen[bytes]", how: str) -> None:
    if process.poll() is not None:  # on a machine that was busier before, the moment may come after the end
        return
    below = psutil.Process(process.pid).children(recursive=True)
    if how == "tree":
        for child in [*below, psutil.Process(process.pid)]:
            child.suspend()  # all at the same moment, as when the machine stops
    if how == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(process.pid, signal.SIGKILL)
    if how == "tree":
        for child in below:
            child.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while alive := [child for child in below if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < deadline, f"killed ({how}), but these live on: {alive}"
        time.sleep(0.05)


def check_record(recorded: list[str], interrupted: str | None) -> None:
    """What is on record after a kill: every step before the one that was under way, and that one if it had just ended."""
    known = STEPS.index(interrupted) if interrupted else 0
    assert recorded in (STEPS[:known], STEPS[: known + 1]), f"on record after a kill in {interrupted}: {recorded}"


def check_started(started: list[str], recorded: list[str]) -> None:
    """What a restart runs: the steps that are not on record, in order, and no other."""
    rest = [step for step in STEPS if step not in recorded]
    assert started == rest[: len(started)], f"on record were {recorded}"


def check_end(round_: Round, job: JobStatus, undisturbed: Undisturbed) -> None:
    assert (job.state, job.error, sorted(job.published)) == ("done", "", REPOS)
    assert published(round_.hub) == undisturbed.repos
    everything = list(HfApi(endpoint=round_.hub.url, token=TOKEN).list_models(author="demo-bot"))
    assert sorted((info.id, info.private) for info in everything) == [(repo_id, False) for repo_id in REPOS]
    records = Records(round_.settings.state / queue.RECORDS)
    assert leftovers(Hub(round_.hub.url, TOKEN), "demo-bot", records) == []
    assert list((round_.settings.state / "work").iterdir()) == []


def wait_for_step(round_: Round, process: "subprocess.Popen[bytes]", step: str) -> None:
    while not any(match["word"] == "start" and match["step"] == step for match in round_.log()):
        assert process.poll() is None, f"ended before {step}"
        time.sleep(0.005)


@pytest.mark.timeout(1800)
def test_four_kills_of_one_job(new_round: Callable[[Path], Round], one_layer: Path) -> None:
    """In the middle of each long step and of each publication, one after the other."""
    undisturbed = undisturbed_run(new_round(one_layer))
    round_ = new_round(one_layer)
    chance = random.Random(20)
    recorded: list[str] = []
    for number, step in enumerate(["quantize", "evaluate", *STEPS[4:6]]):
        if step in recorded:  # the kill before came a moment too late for it
            continue
        process = round_.start()
        wait_for_step(round_, process, step)
        first, last = undisturbed.spans[step]
        time.sleep(chance.random() * (last - first))
        kill(process, HOW[number % len(HOW)])
        started = round_.turn_page()
        check_started(started, recorded)
        recorded = round_.recorded()
        check_record(recorded, started[-1])
    job = round_.finish()
    started = round_.turn_page()
    check_started(started, recorded)
    assert len(recorded) + len(started) == len(STEPS)
    check_end(round_, job, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_twenty_kills_at_random_moments(new_round: Callable[[Path], Round], bundled: Path) -> None:
    """Each with a Hub and a state folder of its own; every other one aims at a step, so that the short ones are met, too."""
    undisturbed = undisturbed_run(new_round(bundled))
    print(f"\nundisturbed: {undisturbed.seconds:.1f} s")
    for seed in range(20):
        chance = random.Random(seed)
        round_ = new_round(bundled)
        process = round_.start()
        step = chance.choice(STEPS) if seed % 2 else ""
        if step:
            wait_for_step(round_, process, step)
            first, last = undisturbed.spans[step]
            time.sleep(chance.random() * (last - first))
        else:
            time.sleep(chance.random() * undisturbed.seconds)
        how = HOW[seed % len(HOW)]
        kill(process, how)
        before, recorded = round_.turn_page(), round_.recorded()
        check_record(recorded, before[-1] if before else None)
        job = round_.finish()
        started = round_.turn_page()
        check_started(started, recorded)
        assert len(recorded) + len(started) == len(STEPS)
        check_end(round_, job, undisturbed)
        where = before[-1] if before else "the poll"
        print(
            f"kill {seed:2}: {how:6} in {where}; steps on record {len(recorded)}, run after the restart {len(started)}", flush=True
        )
        round_.hub.stop()
