"""Shared by all tests. huggingface_hub reads its environment when it is imported, so it is set here first."""

import os
import tempfile
import threading

HF_HOME = tempfile.TemporaryDirectory(prefix="hubquant-tests-")
os.environ["HF_HOME"] = HF_HOME.name  # nothing of a developer's own cache or login is read or written
os.environ["HF_HUB_DISABLE_XET"] = "1"  # the local Hub stores large files through LFS
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
os.environ.pop("HF_TOKEN", None)
os.environ.pop("HF_HUB_OFFLINE", None)

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from hubquant.hub.local.server import LocalHub


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub and a download cache of its own for each test, with the default users and test hooks.

    HfApi(endpoint=local_hub.url, token="hf_demo_bot") is its client.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    hub = LocalHub(tmp_path / "hub", test_hooks=True).start()
    yield hub
    threading.Thread(target=hub.stop).start()  # a clean stop takes 0.2 s, for which no test has to wait


@pytest.fixture(scope="session")
def bundled() -> Path:
    """The demo's model folder."""
    return Path(str(files("hubquant.demo"))) / "data" / "model"
