"""The whole line with a Hub on which every call fails three times before it works: refused, broken, cut."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubquant.bot import worker
from hubquant.bot.workflow import Bench
from hubquant.config import Settings
from hubquant.hub.client import Hub
from hubquant.hub.local.server import LocalHub
from hubquant.hub.retry import Retry

BROKEN = (
    {"status": 429, "headers": {"RateLimit": '"api";r=0;t=30'}},
    {"status": 500},
)


def published(hub: LocalHub) -> dict[str, dict[str, str]]:
    """Every repo of the bot, public or not, with its files' hashes. Cards and manifests hold times and addresses."""
    api = HfApi(endpoint=hub.url, token="hf_demo_bot")
    found = {}
    for info in api.list_models(author="demo-bot", full=True):
        assert not api.model_info(info.id).private
        files = api.model_info(info.id, files_metadata=True).siblings or []
        found[info.id] = {f.rfilename: f.lfs.sha256 if f.lfs else f.blob_id or "" for f in files}
        assert found[info.id].pop("README.md") and found[info.id].pop("hubquant.json")
    return found


def run(hub: LocalHub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bot once, without its waits."""
    # one commit makes five calls, and here each of them fails three times
    patient = Hub(hub.url, "hf_demo_bot", retry=Retry(attempts=20), sleep=lambda seconds: None)
    # the client's own waits between uploads of one body; all others are hubquant's
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    summary = worker.run_once(settings, bench=Bench(settings, patient))
    assert [job.state for job in summary.jobs] == ["done"], summary


def stable(path: str) -> str:
    """The commits that the bot makes, and so the addresses with their hashes, differ from run to run."""
    return re.sub(r"[0-9a-f]{40,64}", "[0-9a-f]{40,64}", re.escape(path))


def test_every_call_refused_broken_and_cut_ends_in_the_same_state(
    tmp_path: Path,
    add_real_model: Callable[..., str],
    make_settings: Callable[[Path, str], Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with LocalHub(tmp_path / "calm") as empty:
        add_real_model(empty.url, "tiny")
    shutil.copytree(tmp_path / "calm", tmp_path / "rough")  # the same base at the same commit

    with LocalHub(tmp_path / "calm", test_hooks=True) as calm:
        run(calm, make_settings(tmp_path / "calm-state", calm.url), monkeypatch)
        calls = {(r.method, stable(r.path)) for r in calm.requests}
        wanted = published(calm)
    assert {"demo-bot/tiny-GPTQ-Int4", "demo-bot/tiny-GGUF"} == set(wanted) and len(calls) > 20

    with LocalHub(tmp_path / "rough", test_hooks=True) as rough:
        for method, pattern in calls:
            exactly: dict[str, Any] = {"path": f"^{pattern}$", "method": f"^{method}$"}
            for answer in BROKEN:
                rough.faults.inject(**exactly, **answer)
            rough.faults.drop(**exactly)
        run(rough, make_settings(tmp_path / "rough-state", rough.url), monkeypatch)
        struck = [r.status for r in rough.requests]
        assert list(rough.faults) == [], "a fault struck nobody: that call was not made again"
        assert struck.count(429) == struck.count(500) == struck.count(0) == len(calls)
        assert published(rough) == wanted
