"""One small layer on its way into a packed folder, for the tests of those who write and read it."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubquant.artifact import Artifact
from hubquant.calibrate.statistics import InputStatistics
from hubquant.formats.packed import PackedWriter
from hubquant.model.layer import Layer
from hubquant.model.topology import Absorber, LayerInput
from hubquant.recipe import VARIANTS

GPTQ, AWQ = VARIANTS["gptq-int4-g128"], VARIANTS["awq-int4-g128"]
PREFIX = "model.layers.0."


def inputs(width: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(300, width, generator=random) @ torch.randn(width, width, generator=random) / width**0.5
    x[:, ::16] *= 20
    return x


def layer(up: tuple[int, int], down: tuple[int, int], tokens: Tensor | None = None, absorber: bool = False) -> Layer:
    """Norm → up → down, as a feed-forward block has them, with a bias; `up` and `down` are [out, in]."""
    random = torch.Generator().manual_seed(7)
    tensors = {
        "norm.weight": torch.rand(up[1], generator=random) + 0.5,
        "up.weight": 0.02 * torch.randn(*up, generator=random),
        "up.bias": torch.randn(up[0], generator=random),
        "down.weight": 0.02 * torch.randn(*down, generator=random),
    }
    statistics = {"up": InputStatistics(up[1]), "down": InputStatistics(down[1])}
    statistics["up"].add(inputs(up[1]) if tokens is None else tokens)
    statistics["down"].add(inputs(down[1], seed=1))
    read = LayerInput(("up",), Absorber("norm", torch.arange(up[1])) if absorber else None)
    return Layer(PREFIX, tensors, (read, LayerInput(("down",), None)), statistics)


def make(base: Path, one: Layer, variant: Any = GPTQ, **options: Any) -> tuple[Path, Artifact]:
    """One layer and an embedding, written as `variant`."""
    embedding = torch.linspace(-1, 1, 40 * 8).view(40, 8)
    shapes = {PREFIX + n: tuple(t.shape) for n, t in one.tensors.items()} | {"model.embed_tokens.weight": (40, 8)}
    folder = base.parent / variant.name
    shutil.rmtree(folder, ignore_errors=True)
    writer = PackedWriter(variant, folder, base, shapes, {PREFIX + "up.weight", PREFIX + "down.weight"}, **options)
    writer.add_outside("model.embed_tokens.weight", embedding)
    writer.add_layer(one)
    assert all(p.name.endswith(".part") for p in folder.iterdir())
    return folder, writer.finish()
