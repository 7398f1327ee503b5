"""Every request that fetching a base and publishing a repo make, failed once in every way: the end is always the same."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubquant.artifact import Base
from hubquant.config import Publish
from hubquant.hub import card, publish, snapshot
from hubquant.hub.client import Hub
from hubquant.hub.files import git_oid
from hubquant.hub.local.faults import Fault, Request
from hubquant.hub.local.server import LocalHub
from hubquant.hub.publish import PublishedRepo
from hubquant.hub.records import Records

BASE, REPO = "demo-org/tiny", "demo-bot/tiny-AWQ"
SETTINGS = Publish(namespace="demo-bot", collection="Quantized")
KINDS: dict[str, dict[str, Any]] = {
    "429": {"status": 429, "headers": {"RateLimit": '"api";r=0;t=30'}},
    "500": {"status": 500},
    "cut before": {"drop": "before"},
    "cut after": {"drop": "after"},
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, make: Any) -> Iterator["Stage"]:
    """One Hub for all runs."""
    folder = tmp_path_factory.mktemp("faults")
    with LocalHub(folder / "hub", test_hooks=True) as local:
        org = HfApi(endpoint=local.url, token="hf_demo_org")
        base = make.base(folder / "base")
        (base / "model-00001-of-00002.safetensors").rename(base / "model.safetensors")
        for name in ("model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer_config.json"):
            (base / name).unlink()  # two requests less each, of a kind that others make
        org.create_repo(BASE)
        org.upload_folder(repo_id=BASE, folder_path=base)
        yield Stage(local, folder, make)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own waits between uploads of one body; all others are hubquant's."""
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))


@dataclass
class Stage:
    local: LocalHub
    folder: Path
    make: Any
    runs: int = 0

    def hub(self) -> Hub:
        return Hub(self.local.url, "hf_demo_bot", sleep=lambda seconds: None)

    def new_folder(self) -> Path:
        self.runs += 1
        return self.folder / str(self.runs)

    def fetch(self) -> list[Request]:
        """Pin and download; the folder holds the base, byte for byte. Returns the requests made."""
        hub, folder = self.hub(), self.new_folder()
        self.local.requests.clear()
        base = snapshot.pin(hub, BASE)
        snapshot.download(hub, base, folder)
        got = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert got == {path.name: path.read_bytes() for path in (self.folder / "base").iterdir()}
        return self.requests(hub)

    def publish(self) -> list[Request]:
        """Publish once, with weights never seen before so that they must be uploaded; the repo is as it should be. Returns the
        requests made."""
        hub, folder = self.hub(), self.new_folder()
        base = Base(repo_id=BASE, revision="a" * 40, fingerprint="f" * 64, license="apache-2.0")
        report = self.make.report(folder / "out", base, names=("awq-int4-g128",), seed=self.runs)
        records = Records(folder / "published")
        (repo,) = publish.plan(report, "demo-bot")
        self.local.requests.clear()
        done = publish.publish(hub, repo, report, folder / "out", SETTINGS, model_folder=self.folder / "base", records=records)
        requests = self.requests(hub)
        self.check(hub, done, card.block_of(report), folder / "out" / "awq-int4-g128", records)
        hub.delete_repo(REPO)
        for collection in hub.api.list_collections(owner="demo-bot"):
            hub.api.delete_collection(collection.slug)
        return requests

    def requests(self, hub: Hub) -> list[Request]:
        """What was logged before this call. A request is logged after its answer, so one more makes sure of the last."""
        hub.repo_exists("demo-bot/marker")
        return [request for request in self.local.requests if not request.path.endswith("/marker")]

    def check(self, hub: Hub, done: PublishedRepo, block: dict[str, str], folder: Path, records: Records) -> None:
        assert done.repo_id == REPO and done.commit == hub.head(REPO) and records.finished(REPO)
        assert [info.id for info in hub.list_models(author="demo-bot")] == [REPO]
        assert not hub.model_info(REPO).private
        assert len(hub.api.list_repo_commits(REPO)) == 2  # its creation and ours
        tree = hub.tree(REPO, "main")
        assert set(tree) == {".gitattributes", "hubquant.json", *done.files}
        for path in folder.iterdir():
            entry = tree[path.name]
            assert entry.lfs.sha256 == done.files[path.name] if entry.lfs else entry.blob_id == git_oid(path)
        assert publish.desired_state(hub, REPO) == block
        (collection,) = hub.api.list_collections(owner="demo-bot")
        assert [item.item_id for item in hub.api.get_collection(collection.slug).items] == [REPO]


def faults(requests: list[Request], kind: dict[str, Any]) -> Iterator[Fault]:
    """One fault per request: its method and path, commits and contents aside, and which one of its kind it is."""
    count: Counter[tuple[str, str]] = Counter()
    for request in requests:
        path = re.sub(r"[0-9a-f]{40,64}", "[0-9a-f]+", re.escape(request.path))
        path = re.sub(r"quantized\\-[0-9a-f]+", "quantized-[0-9a-f]+", path)  # the collection's slug
        yield Fault(f"^{path}$", f"^{request.method}$", skip=count[request.method, path], **kind)
        count[request.method, path] += 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["fetch", "publish"])
def test_any_request_may_fail_once(stage: Stage, part: str, kind: str) -> None:
    do = getattr(stage, part)
    requests = do()
    assert len(requests) >= 13
    started = time.monotonic()
    for fault in faults(requests, KINDS[kind]):
        stage.local.faults.add(fault)
        try:
            do()
        except Exception as error:
            raise AssertionError(f"{kind} at {fault.method} {fault.path} (after {fault.skip})") from error
        assert fault.times == 0, f"the fault at {fault.method} {fault.path} did not strike"
        stage.local.faults.clear()
    print(f"{part}, {kind}: {len(requests)} requests, {time.monotonic() - started:.1f} s")
