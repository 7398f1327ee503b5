"""Base models on a local Hub: the bundled one, whole or damaged, and small ones that only look like models."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubquant.config import Publish as PublishSettings
from hubquant.config import Settings, Watch
from hubquant.hub.client import Hub
from hubquant.hub.local.server import LocalHub
from hubquant.hub.retry import Retry
from hubquant.recipe import Calibration, EvaluationPlan, Recipe

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


@pytest.fixture(scope="session")
def one_layer(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model cut down to its first decoder layer: everything a model has, a quarter of the work."""
    folder = tmp_path_factory.mktemp("one-layer") / "model"
    shutil.copytree(bundled, folder)
    content = (bundled / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = {}, b""
    for name, entry in json.loads(content[8:start]).items():
        if name == "__metadata__":
            header[name] = entry
        elif ".layers." not in name or ".layers.0." in name:
            first, last = entry["data_offsets"]
            header[name] = {**entry, "data_offsets": [len(data), len(data) + last - first]}
            data += content[start + first : start + last]
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    return folder


@pytest.fixture(scope="session")
def add_real_model(one_layer: Path, tmp_path_factory: pytest.TempPathFactory) -> AddModel:
    """add_real_model(url, "name", damage): uploads the one-layer model, after `damage(folder)` on a copy of it, as
    demo-org/name."""

    def add(url: str, name: str, damage: Callable[[Path], object] = lambda folder: None) -> str:
        org = HfApi(endpoint=url, token="hf_demo_org")
        repo_id, folder = f"demo-org/{name}", tmp_path_factory.mktemp(name) / "upload"
        shutil.copytree(one_layer, folder)
        damage(folder)
        org.create_repo(repo_id, exist_ok=True)
        org.upload_folder(repo_id=repo_id, folder_path=folder)
        return repo_id

    return add


@pytest.fixture(scope="session")
def make_settings() -> Callable[[Path, str], Settings]:
    """make_settings(state, url): a bot of demo-bot that watches demo-org."""

    def make(state: Path, url: str) -> Settings:
        return Settings(
            state=state,
            endpoint=url,
            watch=Watch(organisations=("demo-org",)),
            publish=PublishSettings(namespace="demo-bot"),
            recipe=SMALL_RECIPE,
        )

    return make


@pytest.fixture
def settings(make_settings: Callable[[Path, str], Settings], local_hub: LocalHub, tmp_path: Path) -> Settings:
    return make_settings(tmp_path / "state", local_hub.url)
