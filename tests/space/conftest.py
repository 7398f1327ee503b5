"""The page's modules lie in space/, outside the package: they are imported from there, as a Space imports them."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubquant.config import Publish, Settings
from hubquant.hub.client import Hub
from hubquant.hub.local.server import LocalHub
from hubquant.hub.retry import Retry

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
SPACE = Path(__file__).parents[2] / "space"
sys.path.append(str(SPACE))

AddModel = Callable[..., str]
CONFIG = b'{"architectures": ["LlamaForCausalLM"], "vocab_size": 10, "hidden_size": 4}'
STUB_FILES = {"config.json": CONFIG, "model.safetensors": b"weights", "tokenizer.json": b"{}"}


@pytest.fixture
def settings(local_hub: LocalHub, tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state", endpoint=local_hub.url, publish=Publish(namespace="demo-bot"))


@pytest.fixture
def hub(local_hub: LocalHub) -> Hub:
    """A visitor's: no token, no patience."""
    return Hub(local_hub.url, token=False, retry=Retry(attempts=2, base_seconds=0.01))


@pytest.fixture
def add_model(local_hub: LocalHub) -> AddModel:
    """add_model("name", license="mit", files={...}): demo-org/name, which looks like a model to the Hub."""
    org = HfApi(endpoint=local_hub.url, token="hf_demo_org")

    def add(name: str, license: str = "apache-2.0", files: Mapping[str, bytes] = STUB_FILES) -> str:
        repo_id = f"demo-org/{name}"
        org.create_repo(repo_id)
        contents = {"README.md": f"---\nlicense: {license}\n---\n# A model\n".encode(), **files}
        operations = [CommitOperationAdd(path, content) for path, content in contents.items()]
        org.create_commit(repo_id, operations, commit_message="Add the model")
        return repo_id

    return add


@pytest.fixture
def on_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """gradio's own signs of running on a Space that has hf_oauth."""
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("SPACE_ID", "demo-bot/page")
    oauth = {
        "OAUTH_CLIENT_ID": "client",
        "OAUTH_CLIENT_SECRET": "secret",
        "OAUTH_SCOPES": "openid profile",
        "OPENID_PROVIDER_URL": "http://127.0.0.1:9",
    }
    for name, value in oauth.items():
        monkeypatch.setattr(f"gradio.oauth.{name}", value)
