"""Shared by all tests. huggingface_hub reads its environment when it is imported, so it is set here first."""

import os

os.environ["HF_HUB_DISABLE_XET"] = "1"  # the local Hub stores large files through LFS
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
os.environ.pop("HF_TOKEN", None)
os.environ.pop("HF_HUB_OFFLINE", None)

from collections.abc import Iterator
from pathlib import Path

import pytest

from hubquant.hub.local.server import LocalHub


@pytest.fixture
def local_hub(tmp_path: Path) -> Iterator[LocalHub]:
    """A Hub of its own for each test, with the default users and test hooks: HfApi(endpoint=local_hub.url, token="hf_demo_bot")."""
    with LocalHub(tmp_path / "hub", test_hooks=True) as hub:
        yield hub
