"""Base models on a local Hub: the bundled one, whole or damaged, and small ones that only look like models."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

import hubquant.demo
from hubquant.config import Publish as PublishSettings
from hubquant.config import Settings, Watch
from hubquant.hub.client import Hub
from hubquant.hub.local.server import LocalHub
from hubquant.hub.retry import Retry
from hubquant.recipe import Calibration, EvaluationPlan, Recipe

DEMO_MODEL = Path(hubquant.demo.__file__).parent / "data" / "model"
# Two repos and two heavy steps, in seconds.
SMALL_RECIPE = Recipe(
    variants=("gptq-int4-g128", "gguf-q8_0"),
    calibration=Calibration(windows=2, window=128),
    evaluation=EvaluationPlan(max_tokens=1024),
)
CARD = "---\nlicense: {license}\ntags: [{tags}]\nlibrary_name: transformers\n---\n# A model\n"
STUB_FILES = {"config.json": b'{"architectures": ["LlamaForCausalLM"]}', "model.safetensors": b"weights", "tokenizer.json": b"{}"}

AddModel = Callable[..., str]


@pytest.fixture
def org(local_hub: LocalHub) -> HfApi:
    """The account that owns the base models."""
    return HfApi(endpoint=local_hub.url, token="hf_demo_org")


@pytest.fixture
def hub(local_hub: LocalHub) -> Hub:
    """The bot's client; impatient, since no Hub here is busy."""
    return Hub(local_hub.url, "hf_demo_bot", retry=Retry(attempts=2, base_seconds=0.01))


@pytest.fixture
def add_model(org: HfApi) -> AddModel:
    """add_model("name", license="mit", tags="a, b", files={...}): creates or changes demo-org/name, returns its id. What is in
    it looks like a model to the Hub; nothing could be quantized."""

    def add(name: str, license: str = "apache-2.0", tags: str = "", files: Mapping[str, bytes] = STUB_FILES) -> str:
        repo_id = f"demo-org/{name}"
        org.create_repo(repo_id, exist_ok=True)
        contents = {"README.md": CARD.format(license=license, tags=tags).encode(), **files}
        operations = [CommitOperationAdd(path, content) for path, content in contents.items()]
        org.create_commit(repo_id, operations, commit_message="Add the model")
        return repo_id

    return add


@pytest.fixture
def add_demo_model(org: HfApi, tmp_path: Path) -> AddModel:
    """add_demo_model("name", damage): uploads the bundled model, after `damage(folder)` on a copy of it, as demo-org/name."""

    def add(name: str, damage: Callable[[Path], object] = lambda folder: None) -> str:
        repo_id, folder = f"demo-org/{name}", tmp_path / f"upload-{name}"
        shutil.copytree(DEMO_MODEL, folder)
        damage(folder)
        org.create_repo(repo_id, exist_ok=True)
        org.upload_folder(repo_id=repo_id, folder_path=folder)
        return repo_id

    return add


@pytest.fixture
def settings(local_hub: LocalHub, tmp_path: Path) -> Settings:
    return Settings(
        state=tmp_path / "state",
        endpoint=local_hub.url,
        watch=Watch(organisations=("demo-org",)),
        publish=PublishSettings(namespace="demo-bot"),
        recipe=SMALL_RECIPE,
    )
