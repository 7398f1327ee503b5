"""Checkpoints written as GGUF: the bundled model, once per mixture and session, and small random models of every family."""

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from hubquant.formats.gguf.imatrix import ImatrixInfo
from hubquant.formats.gguf.metadata import Provenance
from hubquant.formats.gguf.writer import GgufWriter
from hubquant.recipe import Variant

DEMO = Path(str(files("hubquant") / "demo" / "data" / "model"))
IMATRIX = ImatrixInfo("imatrix.gguf", "prose-calib", 64)
PROVENANCE = Provenance(
    name="tiny-llama",
    repo_id="demo-org/tiny-llama",
    revision="0123456789abcdef0123456789abcdef01234567",
    url="https://huggingface.co/demo-org/tiny-llama",
    repo_url="https://huggingface.co/demo-bot/tiny-llama-GGUF",
    license="cc0-1.0",
    tags=("text-generation", "tiny"),
    languages=("en",),
    quantized_by="demo-bot",
)
_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
# What llama.cpp must compute as transformers does: config.json of a small random model each.
RANDOM_MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-wide-heads": {"model_type": "llama", "head_dim": 32, "tie_word_embeddings": True},
    "llama-rope-llama3": {"model_type": "llama", "rope_parameters": _LLAMA3},
    "llama-rope-linear": {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "mistral": {"model_type": "mistral", "sliding_window": None, "rms_norm_eps": 1e-5},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2-rope-yarn": {"model_type": "qwen2", "rope_parameters": _YARN},
    "qwen2-rope-yarn-attention": {"model_type": "qwen2", "rope_parameters": {**_YARN, "attention_factor": 1.3}},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
}


def _importance(name: str, weight: Tensor) -> Tensor | None:
    """A made-up importance [in], the same in every run: some columns matter a hundred times more than others."""
    if weight.ndim < 2 or "layers" not in name:
        return None
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return torch.rand(weight.shape[1], generator=generator) ** 4 + 0.01


def _write(path: Path, mixture: str, folder: Path = DEMO, imatrix: ImatrixInfo | None = None) -> Path:
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    variant = Variant(name=f"gguf-{mixture.lower()}", format="gguf", bits=8, mixture=mixture)
    with GgufWriter(path, folder, config, variant, tensors=shapes, provenance=PROVENANCE, imatrix=imatrix) as writer:
        for name, weight in reversed(weights.items()):  # any order will do
            if writer.type_of(name) is not None:
                writer.add(name, weight, _importance(name, weight) if imatrix else None)
        writer.finish()
    return path


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    return DEMO


@pytest.fixture(scope="session")
def provenance() -> Provenance:
    return PROVENANCE


@pytest.fixture(scope="session")
def importance() -> Callable[[str, Tensor], Tensor | None]:
    """The importance that demo_gguf was quantized with."""
    return _importance


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    """(path, mixture, folder, imatrix) → the folder's one safetensors file as GGUF."""
    return _write


@pytest.fixture(scope="session")
def demo_gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """mixture → path of the bundled model in that mixture; the quantized ones with an importance matrix."""
    folder = tmp_path_factory.mktemp("gguf")

    def make(mixture: str) -> Path:
        path = folder / f"tiny-llama-{mixture}.gguf"
        if not path.exists():
            _write(path, mixture, imatrix=None if mixture in ("F32", "F16", "BF16") else IMATRIX)
        return path

    return make


@pytest.fixture(scope="session")
def demo_weights() -> dict[str, Tensor]:
    """The bundled checkpoint, float32."""
    return {name: weight.float() for name, weight in load_file(DEMO / "model.safetensors").items()}


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """name in RANDOM_MODELS → a checkpoint folder with random weights, float32, and the bundled tokenizer."""
    root = tmp_path_factory.mktemp("models")

    def make(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            options = {**_SHAPE, **RANDOM_MODELS[name]}
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**options), dtype=torch.float32)
            for parameter_name, parameter in model.named_parameters():
                if parameter.ndim == 1:  # biases start at 0 and norms at 1: nothing would be seen of them
                    torch.nn.init.normal_(parameter, 0.0 if parameter_name.endswith("bias") else 1.0, 0.3)
            model.save_pretrained(folder)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(DEMO / file, folder)
        return folder

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "random_model_name" in metafunc.fixturenames:
        metafunc.parametrize("random_model_name", RANDOM_MODELS)
