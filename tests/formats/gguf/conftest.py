"""Checkpoints written as GGUF: the bundled model, once per mixture and session, and small random models of every family."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hubquant.formats.gguf.imatrix import ImatrixInfo
from hubquant.formats.gguf.metadata import Provenance
from hubquant.formats.gguf.writer import GgufWriter
from hubquant.recipe import Variant
from tests.formats.gguf.familymodels import RANDOM_MODELS, save_random_model
from tests.formats.gguf.familymodels import weights as checkpoint_weights
from tests.formats.gguf.familyresults import FamilyResults

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


def _importance(name: str, weight: Tensor) -> Tensor | None:
    """A made-up importance [in], the same in every run: some columns matter a hundred times more than others."""
    if weight.ndim < 2 or "layers" not in name:
        return None
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return torch.rand(weight.shape[1], generator=generator) ** 4 + 0.01


def _write(path: Path, mixture: str, folder: Path = DEMO, imatrix: ImatrixInfo | None = None) -> Path:
    config = json.loads((folder / "config.json").read_text())
    weights = checkpoint_weights(folder)
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
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(name in RANDOM_MODELS, wide) → a checkpoint folder with random weights, float32, and the bundled tokenizer."""
    root = tmp_path_factory.mktemp("models")

    def make(name: str, wide: bool = False) -> Path:
        folder = root / f"{name}{'-wide' if wide else ''}"
        if not folder.exists():
            save_random_model(name, wide, folder)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(DEMO / file, folder)
        return folder

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "random_model_name" in metafunc.fixturenames:
        metafunc.parametrize("random_model_name", RANDOM_MODELS)


@pytest.fixture(scope="session")
def family_result() -> Iterator[FamilyResults]:
    """What tests find out about a family; kept for the README's table if HUBQUANT_KEEP_FAMILIES is set."""
    results = FamilyResults()
    yield results
    if os.environ.get("HUBQUANT_KEEP_FAMILIES"):
        results.keep()
