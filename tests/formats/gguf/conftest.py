"""The bundled model written as GGUF, once per mixture and session."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

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


def variant(mixture: str) -> Variant:
    return Variant(name=f"gguf-{mixture.lower()}", format="gguf", bits=8, mixture=mixture)


def importance_of(name: str, weight: torch.Tensor) -> torch.Tensor | None:
    """A made-up importance [in], the same in every run: some columns matter a hundred times more than others."""
    if weight.ndim < 2 or "layers" not in name:
        return None
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return torch.rand(weight.shape[1], generator=generator) ** 4 + 0.01


def write_gguf(path: Path, mixture: str, folder: Path = DEMO, imatrix: ImatrixInfo | None = None) -> Path:
    """A whole checkpoint folder with one safetensors file as a GGUF file."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    with GgufWriter(path, folder, config, variant(mixture), tensors=shapes, provenance=PROVENANCE, imatrix=imatrix) as writer:
        for name, weight in reversed(weights.items()):  # any order will do
            if writer.type_of(name) is not None:
                writer.add(name, weight, importance_of(name, weight) if imatrix else None)
        writer.finish()
    return path


@pytest.fixture(scope="session")
def demo_gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """mixture → path of the bundled model in that mixture; the quantized ones with an importance matrix."""
    folder = tmp_path_factory.mktemp("gguf")

    def make(mixture: str) -> Path:
        path = folder / f"tiny-llama-{mixture}.gguf"
        if not path.exists():
            write_gguf(path, mixture, imatrix=None if mixture in ("F32", "F16", "BF16") else IMATRIX)
        return path

    return make


@pytest.fixture(scope="session")
def demo_weights() -> dict[str, torch.Tensor]:
    """The bundled checkpoint, float32."""
    return {name: weight.float() for name, weight in load_file(DEMO / "model.safetensors").items()}
