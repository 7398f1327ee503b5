"""Small real bases and pass outputs: safetensors files, hashes and reports by hand, no torch."""

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save_file

from hubquant.artifact import Artifact, Base, Evaluation, Protocol, Report, TensorRecord, Verdict, file_sha256
from hubquant.hub.client import Hub
from hubquant.hub.local.server import LocalHub
from hubquant.recipe import VARIANTS, Recipe

PROTOCOL = Protocol(
    name="gptq-512",
    window=512,
    stride=512,
    bos="as tokenized",
    scored="all",
    text="prose-eval",
    text_sha256="e" * 64,
    n_tokens=16352,
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
}  # fmt: skip
CARD = """---
license: apache-2.0
language: [en]
library_name: transformers
pipeline_tag: text-generation
tags: [not-for-all-audiences]
model-index: [{name: boast, results: []}]
widget: [{text: hello}]
---
# Tiny
"""


def make_base(folder: Path, seed: int = 0, card: str = CARD) -> Path:
    """A model folder as on the Hub: two shards, an index, a tokenizer, a card, a licence."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    shards = {f"model-0000{i}-of-00002.safetensors": f"layer.{i}.weight" for i in (1, 2)}
    for file, tensor in shards.items():
        save_file({tensor: random.standard_normal((8, 8)).astype(np.float32)}, folder / file)
    texts = {
        "model.safetensors.index.json": json.dumps({"weight_map": {tensor: file for file, tensor in shards.items()}}),
        "config.json": json.dumps(CONFIG),
        "tokenizer.json": json.dumps({"version": "1.0"}),
        "tokenizer_config.json": json.dumps({"chat_template": "{{ messages }}"}),
        "README.md": card,
        "LICENSE": "Apache License",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


LADDER = ("gptq-int4-g128", "awq-int4-g128", "gguf-q8_0", "gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m")


def make_artifact(out: Path, name: str, seed: int = 0) -> Artifact:
    """One variant's files below `out`, as the pass leaves them."""
    variant = VARIANTS[name]
    folder = out / variant.folder
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng([seed, *name.encode()])
    if variant.format == "gguf":
        files = [folder / f"tiny-{variant.mixture}.gguf", folder / "imatrix.gguf"]
        files[0].write_bytes(b"GGUF" + random.bytes(2000))
        files[1].write_bytes(b"GGUFimatrix")
    else:
        files = [folder / file for file in ("config.json", "model.safetensors", "tokenizer.json")]
        files[0].write_text(json.dumps({**CONFIG, "quantization_config": {"quant_method": variant.format, "bits": 4}}))
        save_file({"layer.1.qweight": random.integers(0, 1 << 30, (8, 8)).astype(np.int32)}, files[1])
        files[2].write_text(json.dumps({"version": "1.0"}))
    tensors = (
        TensorRecord(name="layer.1.weight", type="Q4_K" if variant.mixture else "int4-g128", output_error=0.01),
        TensorRecord(name="lm_head.weight", type="F16"),
    )
    return Artifact(
        variant=name, folder=variant.folder, files={path.name: file_sha256(path) for path in files},
        size_bytes=sum(path.stat().st_size for path in files if path.name != "imatrix.gguf"), bits_per_weight=4.25,
        tensors=tensors, seconds=1.5,
    )  # fmt: skip


def make_evaluation(name: str) -> Evaluation:
    return Evaluation(
        variant=name, protocol=PROTOCOL, perplexity=61.5, base_perplexity=60.0,
        mean_kl=0.0123, p99_kl=0.2, p999_kl=0.5, max_kl=1.25, top1_agreement=0.913,
    )  # fmt: skip


def make_verdict(name: str, passed: bool = True) -> Verdict:
    value = 1.025 if passed else 1.9
    return Verdict(
        variant=name, check="perplexity ratio", value=value, limit=1.15, passed=passed, reason="" if passed else f"{value} > 1.15"
    )


def make_report(out: Path, base: Base, names: tuple[str, ...] = LADDER, failed: tuple[str, ...] = (), seed: int = 0) -> Report:
    return Report(
        hubquant_version="0.1.0", versions={"transformers": "5.23.0", "torch": "2.13.0"}, base=base, recipe=Recipe(variants=names),
        artifacts=tuple(make_artifact(out, name, seed) for name in names), evaluations=tuple(map(make_evaluation, names)),
        verdicts=tuple(make_verdict(name, name not in failed) for name in names),
        calibration_tokens=32768, seconds=12.3, peak_memory_bytes=1 << 30,
    )  # fmt: skip


class Make:
    """The builders, for tests that need more than one of a kind."""

    base = staticmethod(make_base)
    artifact = staticmethod(make_artifact)
    report = staticmethod(make_report)


@pytest.fixture(scope="session")
def make() -> type[Make]:
    return Make


@pytest.fixture
def pinned() -> Base:
    """A base as pinned from a Hub, without one."""
    return Base(
        repo_id="demo-org/tiny-llama",
        revision="a" * 40,
        fingerprint="f" * 64,
        license="apache-2.0",
        architecture="LlamaForCausalLM",
    )


@pytest.fixture
def report(tmp_path: Path, pinned: Base) -> Report:
    return make_report(tmp_path / "out", pinned)


@pytest.fixture
def org(local_hub: LocalHub) -> HfApi:
    """The plain client of somebody else: the base's authors."""
    return HfApi(endpoint=local_hub.url, token="hf_demo_org")


@pytest.fixture
def slept() -> list[float]:
    """The waits that `hub` asked for, in seconds; none of them is waited."""
    return []


@pytest.fixture
def hub(local_hub: LocalHub, slept: list[float]) -> Hub:
    """The publisher's Hub."""
    return Hub(local_hub.url, "hf_demo_bot", sleep=slept.append)


@pytest.fixture
def base_repo(org: HfApi, tmp_path: Path) -> str:
    """demo-org/tiny-llama on the Hub, with a pickle and a subfolder that nobody wants."""
    folder = make_base(tmp_path / "base")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"other")
    org.create_repo("demo-org/tiny-llama")
    org.upload_folder(repo_id="demo-org/tiny-llama", folder_path=folder)
    return "demo-org/tiny-llama"
