import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save

from hubquant.hub.local.derived import derive
from hubquant.hub.local.headers import gguf_summary, safetensors_parameters
from hubquant.hub.local.server import LocalHub

CARD = """---
license: apache-2.0
language: [en, de]
base_model: demo-org/base
base_model_relation: quantized
datasets: demo-org/texts
tags: [awq, 4-bit-ish]
hubquant: {date: 2026-01-02, ratio: .nan}
---
# Title
"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "quantization_config": {"quant_method": "awq", "bits": 4},
}


def shard(**tensors: np.ndarray) -> bytes:
    return save(tensors)


def test_what_follows_from_the_files(api: HfApi, repo: str, add) -> None:
    weights = shard(a=np.zeros((4, 8), np.float16), b=np.zeros(8, np.int32))
    head = add(
        repo, {"README.md": CARD, "config.json": json.dumps(CONFIG), "model.safetensors": weights, "chat_template.jinja": "{{x}}"}
    )
    info = api.model_info(repo, files_metadata=True, securityStatus=False)
    assert info.sha == head and info.author == "demo-bot" and info.last_modified > info.created_at
    assert info.library_name == "transformers" and info.pipeline_tag == "text-generation"
    assert set(info.tags) >= {
        "transformers", "safetensors", "llama", "text-generation", "awq", "4-bit-ish", "conversational", "en", "de", "4-bit",
        "dataset:demo-org/texts", "license:apache-2.0", "base_model:demo-org/base", "base_model:quantized:demo-org/base",
    }  # fmt: skip
    assert info.base_models == {"relation": "quantized", "models": [{"id": "demo-org/base"}]}
    assert info.safetensors.parameters == {"F16": 32, "I32": 8} and info.safetensors.total == 40
    assert info.config["architectures"] == ["LlamaForCausalLM"]
    assert info.config["quantization_config"] == CONFIG["quantization_config"]
    assert "hidden_size" not in info.config
    assert info.card_data.license == "apache-2.0" and info.card_data.base_model_relation == "quantized"
    assert info.card_data.hubquant == {"date": "2026-01-02", "ratio": "nan"}
    siblings = {sibling.rfilename: sibling for sibling in info.siblings}
    assert siblings["model.safetensors"].lfs.size == len(weights) == siblings["model.safetensors"].size
    assert siblings["README.md"].lfs is None
    assert info.used_storage == sum(sibling.size for sibling in info.siblings)


def test_shards(api: HfApi, repo: str, add) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    add(repo, {"model-1.safetensors": shard(a=np.zeros(3, np.float32)), "model.safetensors.index.json": json.dumps(index)})
    assert api.model_info(repo).safetensors is None  # a shard is missing
    add(repo, {"model-2.safetensors": shard(b=np.zeros(4, np.float32))})
    assert api.model_info(repo).safetensors.total == 7


def test_damaged_files_count_as_absent(api: HfApi, repo: str, add) -> None:
    add(repo, {"config.json": "[1, 2", "model.safetensors": b"\xff" * 20, "model.gguf": b"GGUF\x03\0\0\0\xff"})
    info = api.model_info(repo)
    assert info.config is None and info.safetensors is None and info.gguf is None
    assert "gguf" in info.tags and "safetensors" in info.tags


def test_children_are_counted_by_relation(api: HfApi, add) -> None:
    api.create_repo("demo-bot/base")
    for name, relation in (("q1", "quantized"), ("q2", "quantized"), ("f", None), ("hidden", "quantized")):
        api.create_repo(f"demo-bot/{name}", private=name == "hidden")
        line = f"base_model_relation: {relation}\n" if relation else ""
        add(f"demo-bot/{name}", {"README.md": f"---\nbase_model: demo-bot/base\n{line}---\n"})
    assert api.model_info("demo-bot/base").children_model_count == {"quantized": 2, "finetune": 1}


def test_relation_without_a_word_in_the_card(api: HfApi, repo: str, add) -> None:
    for card, files, relation in (
        ("base_model: a/b", {}, "finetune"),
        ("base_model: [a/b, a/c]", {}, "merge"),
        ("base_model: a/b", {"adapter_config.json": "{}"}, "adapter"),
        ("base_model: a/b\nbase_model_relation: quantized", {}, "quantized"),
    ):
        add(repo, {"README.md": f"---\n{card}\n---\n", **files})
        assert f"base_model:{relation}:a/b" in api.model_info(repo).tags


def test_downloads_count_config_and_gguf(api: HfApi, repo: str, add, tmp_path: Path) -> None:
    add(repo, {"config.json": "{}", "a.gguf": b"\0", "b.txt": "x"})
    for name in ("config.json", "a.gguf", "b.txt"):
        api.hf_hub_download(repo, name, local_dir=tmp_path)
    assert api.model_info(repo).downloads == 2


def test_revision(api: HfApi, repo: str, add) -> None:
    first = add(repo, {"config.json": json.dumps(CONFIG)})
    add(repo, {"config.json": "{}"})
    assert "llama" in api.model_info(repo, revision=first).tags
    assert "llama" not in api.model_info(repo).tags
    assert api.model_info(repo, revision="main").sha == api.resolve_revision(repo).resolved


def test_summary_of_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_token_list(["a", "b", "c"])
    writer.add_array("numbers", [1.0, 2.0])
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("x", np.zeros((4, 32), np.float32))
    writer.add_tensor("y", np.zeros(7, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert gguf_summary(path) == {"total": 135, "architecture": "llama", "context_length": 512, "chat_template": "{{ messages }}"}
    whole = path.read_bytes()
    for length in range(0, 200, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="GGUF"):
            gguf_summary(path)


@pytest.mark.parametrize(("length", "header"), [(0, b""), (2, b"[]"), (2**63, b"{}"), (9, b'{"a": {}}'), (5, b"x")])
def test_damaged_safetensors_headers(tmp_path: Path, length: int, header: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header)
    with pytest.raises(ValueError):
        safetensors_parameters(path)


def test_the_bundled_model(local_hub: LocalHub, api: HfApi, repo: str) -> None:
    folder = Path(__file__).parents[3] / "hubquant/demo/data/model"
    api.upload_folder(repo_id=repo, folder_path=folder)
    found = local_hub.state.repos.find("model", repo)
    assert found is not None
    derived = derive(local_hub.state.store, local_hub.state.commits.resolve(found, "main"))
    assert derived.safetensors is not None and derived.safetensors["total"] == 3_672_320
    assert "license:cc0-1.0" in derived.tags
