import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelInfo

from hubquant.artifact import Base
from hubquant.errors import BadModel, DiskFull, GatedModel, HubquantError, RepoGone
from hubquant.hub import snapshot
from hubquant.hub.client import Hub
from hubquant.hub.local.server import LocalHub

Usage = namedtuple("Usage", "total used free")
GOOD = ("config.json", "model.safetensors", "tokenizer.json")


def info(*names: str, tags: list[str] | None = None, config: dict[str, object] | None = None) -> ModelInfo:
    siblings = [{"rfilename": name, "size": 1, "blobId": "a" * 40} for name in names]
    return ModelInfo(id="org/name", siblings=siblings, tags=tags or [], config=config or {})


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (info(*GOOD), None),
        (info("config.json", "model-00001-of-00001.safetensors", "tokenizer.model"), None),
        (info("config.json", "pytorch_model.bin", "tokenizer.json"), "only pickled weights (pytorch_model.bin)"),
        (info("config.json", "tokenizer.json"), "no weights as safetensors"),
        (info("config.json", "onnx/model.safetensors", "tokenizer.json"), "no weights as safetensors"),
        (info("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"), "no config.json"),
        (info("config.json", "model.safetensors", "tokenizer_config.json"), "no tokenizer"),
        (
            info("config.json", "tokenizer.json", "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"),
            "the shard model-00002-of-00003.safetensors is missing",
        ),
        (info(*GOOD, config={"quantization_config": {"quant_method": "awq"}}), "itself quantized (awq)"),
        (info(*GOOD, config={"quantization_config": {"quant_method": "mxfp4"}}, tags=["mxfp4"]), None),
        (info(*GOOD, tags=["base_model:quantized:org/other"]), "itself quantized (tag base_model:quantized:org/other)"),
        (info(*GOOD, tags=["gguf"]), "itself quantized (tag gguf)"),
    ],
)
def test_refusal(model: ModelInfo, reason: str | None) -> None:
    found = snapshot.refusal(model)
    assert found is None if reason is None else found is not None and reason in found and "org/name" in found


def test_deciding_files() -> None:
    names = [
        "README.md", "LICENSE", "config.json", "generation_config.json", "model-00001-of-00001.safetensors",
        "consolidated.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
        "merges.txt", "chat_template.jinja", "special_tokens_map.json", "spiece.model", "onnx/model.safetensors",
        "pytorch_model.bin", "tokenizer.pkl", "modeling_x.py",
    ]  # fmt: skip
    unwanted = {"README.md", "LICENSE", "consolidated.safetensors", "onnx/model.safetensors", "pytorch_model.bin", "tokenizer.pkl"}
    assert set(snapshot.deciding(names)) == set(names) - unwanted - {"modeling_x.py"}


# -- pin


def test_pin(hub: Hub, base_repo: str) -> None:
    base = snapshot.pin(hub, base_repo)
    assert base.revision == hub.head(base_repo)
    assert (base.license, base.architecture, base.parameters) == ("apache-2.0", "LlamaForCausalLM", 128)
    assert base.size_bytes == sum(e.size for p, e in hub.tree(base_repo, "main").items() if p.startswith("model-"))


def test_a_changed_readme_keeps_the_fingerprint_and_changed_weights_do_not(hub: Hub, org: HfApi, base_repo: str) -> None:
    first = snapshot.pin(hub, base_repo)
    org.upload_file(repo_id=base_repo, path_in_repo="README.md", path_or_fileobj=b"---\nlicense: apache-2.0\n---\n# New words\n")
    second = snapshot.pin(hub, base_repo)
    assert second.revision != first.revision
    assert second.fingerprint == first.fingerprint
    org.upload_file(repo_id=base_repo, path_in_repo="tokenizer_config.json", path_or_fileobj=b"{}")
    assert snapshot.pin(hub, base_repo).fingerprint != first.fingerprint
    assert snapshot.pin(hub, base_repo, first.revision) == first


def test_pin_of_a_gated_model(hub: Hub, org: HfApi, base_repo: str) -> None:
    org.update_repo_settings(base_repo, gated="auto")
    with pytest.raises(GatedModel, match=base_repo):
        snapshot.pin(hub, base_repo)


def test_pin_of_pickles(hub: Hub, org: HfApi, base_repo: str) -> None:
    org.delete_files(base_repo, ["*.safetensors", "model.safetensors.index.json"])
    with pytest.raises(BadModel, match="pickled"):
        snapshot.pin(hub, base_repo)


# -- download


@pytest.fixture
def base(hub: Hub, base_repo: str) -> Base:
    return snapshot.pin(hub, base_repo)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".cache"}


def fetched(local_hub: LocalHub) -> list[str]:
    return sorted(r.path.split("/")[-1] for r in local_hub.requests.find("/resolve/", "GET"))


def test_download_is_exact(hub: Hub, base: Base, tmp_path: Path) -> None:
    folder = snapshot.download(hub, base, tmp_path / "model")
    unwanted = {"pytorch_model.bin", "onnx"}
    assert names(folder) == names(tmp_path / "base") - unwanted
    for name in names(folder):
        assert (folder / name).read_bytes() == (tmp_path / "base" / name).read_bytes()


def test_download_again_fetches_only_what_is_missing_or_wrong(hub: Hub, base: Base, local_hub: LocalHub, tmp_path: Path) -> None:
    folder = snapshot.download(hub, base, tmp_path / "model")
    local_hub.requests.clear()
    snapshot.download(hub, base, folder)
    assert fetched(local_hub) == []
    (folder / "LICENSE").unlink()
    damaged = folder / "model-00002-of-00002.safetensors"
    good = damaged.read_bytes()
    damaged.write_bytes(good[:-1] + b"X")
    snapshot.download(hub, base, folder)
    assert fetched(local_hub) == ["LICENSE", "model-00002-of-00002.safetensors"]
    assert damaged.read_bytes() == good


def test_download_goes_by_the_pinned_commit(hub: Hub, org: HfApi, base: Base, base_repo: str, tmp_path: Path) -> None:
    org.upload_file(repo_id=base_repo, path_in_repo="config.json", path_or_fileobj=b"{}")
    folder = snapshot.download(hub, base, tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


def test_a_repo_that_vanishes(hub: Hub, org: HfApi, base: Base, base_repo: str, tmp_path: Path) -> None:
    org.delete_repo(base_repo)
    with pytest.raises(RepoGone, match=base_repo):
        snapshot.download(hub, base, tmp_path / "model")


def test_a_file_that_vanishes_during_the_download(hub: Hub, base: Base, local_hub: LocalHub, tmp_path: Path) -> None:
    local_hub.faults.inject("tokenizer.json", "GET", status=404, headers={"X-Error-Code": "RepoNotFound"})
    with pytest.raises(RepoGone):
        snapshot.download(hub, base, tmp_path / "model")


def test_no_room(hub: Hub, base: Base, local_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, snapshot.FREE_MARGIN_BYTES + 1))
    with pytest.raises(DiskFull, match=r"needs 0\.27 GB"):
        snapshot.download(hub, base, tmp_path / "model")
    assert fetched(local_hub) == []


def test_the_disk_fills_up(hub: Hub, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(DiskFull, match="the disk filled up"):
        snapshot.download(hub, base, tmp_path / "model")
    assert slept == []


def test_a_config_that_turns_out_to_be_quantized(hub: Hub, org: HfApi, base_repo: str, tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "fp8"}}
    org.upload_file(repo_id=base_repo, path_in_repo="config.json", path_or_fileobj=json.dumps(config).encode())
    with pytest.raises(BadModel, match="itself quantized"):
        snapshot.download(hub, Base(repo_id=base_repo, revision=hub.head(base_repo), fingerprint=""), tmp_path / "model")


def test_the_texts_alone(hub: Hub, base: Base, tmp_path: Path) -> None:
    folder = snapshot.download_texts(hub, base, tmp_path / "texts")
    assert names(folder) == {"README.md", "LICENSE", "config.json", "tokenizer_config.json"}


# -- local folders


def test_a_local_folder(tmp_path: Path, base_repo: str) -> None:
    folder = tmp_path / "base"
    base = snapshot.fingerprint_folder(folder)
    assert (base.repo_id, base.revision, base.license, base.architecture) == ("base", "", "apache-2.0", "LlamaForCausalLM")
    (folder / "README.md").write_text("changed")
    assert snapshot.fingerprint_folder(folder).fingerprint == base.fingerprint
    (folder / "tokenizer.json").write_text("{}")
    assert snapshot.fingerprint_folder(folder).fingerprint != base.fingerprint


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (
            lambda folder: (folder / "model-00001-of-00002.safetensors").unlink(),
            "the shard model-00001-of-00002.safetensors is missing",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}'), "quantized"),
        (lambda folder: shutil.rmtree(folder), "not a folder"),
    ],
)
def test_a_bad_local_folder(break_it, reason: str, base_repo: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    break_it(tmp_path / "base")
    with pytest.raises(HubquantError, match=reason):
        snapshot.fingerprint_folder(tmp_path / "base")
