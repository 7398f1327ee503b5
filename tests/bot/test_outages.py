"""Every request of a whole run of the bot, from the listing to the last repo, failed once: the end is always the same.

The heavy steps make no requests; here they copy what the real ones made once.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubquant.bot import worker
from hubquant.bot.workflow import Bench
from hubquant.config import Publish, Settings
from hubquant.hub.client import Hub
from hubquant.hub.local.faults import Fault, Request
from hubquant.hub.local.server import LocalHub
from hubquant.hub.retry import Retry

pytestmark = pytest.mark.timeout(900)  # heavy steps in subprocesses, on a machine that may be busy
TOKEN = "hf_demo_bot"
REPOS = ["demo-bot/tiny-llama-GGUF", "demo-bot/tiny-llama-GPTQ-Int4"]
KINDS: dict[str, dict[str, Any]] = {
    "429": {"status": 429},
    "500": {"status": 500},
    "cut before": {"drop": "before"},
    "cut after": {"drop": "after"},
}
# quantize: OUT gets what was made once, for this base and recipe; evaluate: nothing is left to do
COPY = """
import shutil, sys
from pathlib import Path
from hubquant.artifact import Base, Report
from hubquant.recipe import Recipe
made, verb, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
if verb == "quantize":
    option = dict(zip(arguments[1::2], arguments[2::2]))
    out = Path(option["-o"])
    shutil.copytree(made, out)
    base = Base.model_validate_json(Path(option["--base"]).read_text())
    recipe = Recipe.model_validate_json(Path(option["--recipe"]).read_text())
    report = Report.read(made).model_copy(update={"base": base, "recipe": recipe})
    (out / "hubquant.json").write_text(report.model_dump_json())
"""


@dataclass
class Outcome:
    requests: list[Request]
    state: dict[str, Any]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own waits between uploads of one body; all others are hubquant's."""
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture(scope="module")
def made(one_layer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder of the real heavy steps."""
    out = tmp_path_factory.mktemp("made") / "out"
    small = ["-v", "gptq-int4-g128", "-v", "gguf-q8_0", "--windows", "2", "--window", "128", "--max-tokens", "1024", "--json"]
    command = [sys.executable, "-m", "hubquant", "quantize", str(one_layer), "-o", str(out), *small]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600)
    return out


@pytest.fixture(scope="module")
def prepared(one_layer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub's folder with the base model in it, to be copied: the same commit each time."""
    root = tmp_path_factory.mktemp("prepared") / "hub"
    with LocalHub(root) as hub:
        org = HfApi(endpoint=hub.url, token="hf_demo_org")
        org.create_repo("demo-org/tiny-llama")
        org.upload_folder(repo_id="demo-org/tiny-llama", folder_path=one_layer)
    return root


@pytest.fixture(scope="module")
def run(prepared: Path, made: Path, make_settings: Callable[[Path, str], Settings]) -> Callable[[Path, list[Fault]], Outcome]:
    """run(folder, faults): one run of the bot on a copy of the prepared Hub."""

    def once(folder: Path, faults: list[Fault]) -> Outcome:
        shutil.copytree(prepared, folder / "hub")
        with LocalHub(folder / "hub", test_hooks=True) as hub:
            settings = make_settings(folder / "state", hub.url)
            settings = settings.model_copy(update={"publish": Publish(namespace="demo-bot", collection="Quantized")})
            for fault in faults:
                hub.faults.add(fault)
            # a commit is seven requests, of which every one fails in its turn
            hurried = Hub(hub.url, TOKEN, retry=Retry(attempts=12, base_seconds=0.001))
            bench = Bench(settings, hurried, command=(sys.executable, "-c", COPY, str(made)), patience=())
            summary = worker.run_once(settings, TOKEN, bench=bench)
            requests = list(hub.requests)
            hub.faults.clear()
            assert [(job.state, job.error) for job in summary.jobs] == [("done", "")]
            return Outcome(requests, published(hub))

    return once


def published(hub: LocalHub) -> dict[str, Any]:
    """What there is in the bot's namespace: whether private, which files, how many commits; and its collection."""
    api = HfApi(endpoint=hub.url, token=TOKEN)
    state: dict[str, Any] = {}
    for info in api.list_models(author="demo-bot"):
        full = api.model_info(info.id, files_metadata=True)
        hashes = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in full.siblings or ()}
        state[info.id] = (full.private, timeless(hashes), len(api.list_repo_commits(info.id)))
    [collection] = api.list_collections(owner="demo-bot")
    state["collection"] = sorted(item.item_id for item in api.get_collection(collection.slug).items)
    return state


def timeless(hashes: dict[str, str | None]) -> dict[str, str | None]:
    """The card names the Hub's address, whose port differs; the manifest has the card's hash."""
    return {name: None if name in ("README.md", "hubquant.json") else value for name, value in hashes.items()}


def once_each(requests: list[Request], kind: str) -> list[Fault]:
    """For every request of an undisturbed run a fault that strikes it, and lets its repetition pass."""
    faults = []
    for (method, path), count in Counter((request.method, stable(request.path)) for request in requests).items():
        faults += [Fault(f"^{path}$", f"^{method}$", skip=min(number, 1), **KINDS[kind]) for number in range(count)]
    return faults


def stable(path: str) -> str:
    """A commit of the bot's own differs from run to run."""
    return re.sub("[0-9a-f]{40}(?![0-9a-f])", "[0-9a-f]{40}", re.escape(path))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, run: Callable[[Path, list[Fault]], Outcome]) -> Outcome:
    outcome = run(tmp_path_factory.mktemp("undisturbed"), [])
    assert sorted(repo for repo in outcome.state if "/" in repo) == REPOS
    assert outcome.state["collection"] == REPOS
    assert [outcome.state[repo][0] for repo in REPOS] == [False, False]
    assert len(outcome.requests) > 30
    return outcome


@pytest.mark.parametrize("kind", KINDS)
def test_every_request_fails_once(
    kind: str, tmp_path: Path, undisturbed: Outcome, run: Callable[[Path, list[Fault]], Outcome]
) -> None:
    outcome = run(tmp_path, once_each(undisturbed.requests, kind))
    struck = sum(request.status in (0, 429, 500) for request in outcome.requests)
    assert struck >= len({(request.method, stable(request.path)) for request in undisturbed.requests})
    assert outcome.state == undisturbed.state
