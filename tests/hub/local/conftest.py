"""Clients of the local Hub."""

import time
from collections.abc import Callable, Mapping

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubquant.hub.local.server import LocalHub

Add = Callable[..., str]


@pytest.fixture
def api(local_hub: LocalHub) -> HfApi:
    """The unmodified client as the writer demo-bot."""
    return HfApi(endpoint=local_hub.url, token="hf_demo_bot")


@pytest.fixture
def other(local_hub: LocalHub) -> HfApi:
    """Another writer, without rights in demo-bot's namespace."""
    return HfApi(endpoint=local_hub.url, token="hf_demo_org")


@pytest.fixture
def reader(local_hub: LocalHub) -> HfApi:
    return HfApi(endpoint=local_hub.url, token="hf_reader")


@pytest.fixture
def anonymous(local_hub: LocalHub) -> HfApi:
    return HfApi(endpoint=local_hub.url, token=False)


@pytest.fixture
def add(api: HfApi) -> Add:
    """Commit files given as {path: text or bytes}; returns the commit id."""

    def commit(repo_id: str, files: Mapping[str, str | bytes], message: str = "Add files", **how: object) -> str:
        operations = [
            CommitOperationAdd(path, content.encode() if isinstance(content, str) else content) for path, content in files.items()
        ]
        return api.create_commit(repo_id, operations, commit_message=message, **how).oid  # type: ignore[arg-type]

    return commit


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's pauses between two tries become very short."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))


@pytest.fixture
def repo(api: HfApi) -> str:
    """An empty public model repo."""
    return api.create_repo("demo-bot/one").repo_id
