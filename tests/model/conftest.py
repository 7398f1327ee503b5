"""Models for these tests: the bundled one, and copies of it with one thing broken."""

import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

BUNDLED = Path(str(files("hubquant.demo"))) / "data" / "model"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the bundled model, to be broken."""
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED, folder)
    return folder


@pytest.fixture
def changed(copy: Path) -> Callable[[Callable[[dict[str, Tensor]], None]], Path]:
    """The copy after `change` had its way with its state dict."""

    def apply(change: Callable[[dict[str, Tensor]], None]) -> Path:
        tensors = load_file(copy / "model.safetensors")
        change(tensors)
        save_file({n: t.contiguous() for n, t in tensors.items()}, copy / "model.safetensors", {"format": "pt"})
        return copy

    return apply


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 2048, (3, 48), generator=torch.Generator().manual_seed(7))
