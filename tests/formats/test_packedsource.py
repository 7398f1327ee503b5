"""Packed folders that are damaged, or no packed folders: each is refused in one sentence that names the tensor or the setting."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.formats.packedsource import PackedSource
from tests.formats.packedlayers import AWQ, PREFIX, layer, make


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of quantization_config; None removes one."""
    config = json.loads((folder / "config.json").read_text())
    block = config["quantization_config"] | changes
    config["quantization_config"] = {k: v for k, v in block.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder: Path, **tensors: Tensor | None) -> None:
    """Replace tensors of linear `down` by suffix; None removes one."""
    stored = load_file(folder / "model.safetensors")
    for suffix, tensor in tensors.items():
        stored.pop(f"{PREFIX}down.{suffix}")
        if tensor is not None:
            stored[f"{PREFIX}down.{suffix}"] = tensor
    save_file(stored, folder / "model.safetensors")


def read_down(folder: Path) -> Tensor:
    return PackedSource(folder).tensor(PREFIX + "down.weight")


def test_a_folder_that_is_not_packed_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"quant_method is None; known: gptq, awq"):
        PackedSource(base)
    with pytest.raises(BadModel, match=r"config\.json cannot be read"):
        PackedSource(tmp_path / "nowhere")
    (base / "config.json").write_text("[1, 2]")
    with pytest.raises(BadModel, match=r"config\.json cannot be read"):
        PackedSource(base)
    (base / "config.json").write_text("{ not json")
    with pytest.raises(BadModel, match=r"config\.json cannot be read"):
        PackedSource(base)


def test_damage_in_a_folder_is_named(base: Path) -> None:
    folder, _ = make(base, layer((16, 64), (8, 64)))
    edit(folder, quant_method="bitsandbytes")
    with pytest.raises(BadModel, match=r"quant_method is 'bitsandbytes'"):
        PackedSource(folder)
    edit(folder, quant_method="gptq", bits=5)
    with pytest.raises(BadModel, match=r"bits is 5; hubquant reads 2, 3, 4, 8 bits"):
        read_down(folder)
    edit(folder, bits=4, checkpoint_format="gptq_v3")
    with pytest.raises(BadModel, match=r"checkpoint_format is 'gptq_v3'"):
        read_down(folder)
    edit(folder, checkpoint_format="gptq")
    rewrite(folder, g_idx=torch.full((64,), 9, dtype=torch.int32))
    with pytest.raises(BadModel, match=r"tensor model\.layers\.0\.down\.g_idx names groups 9 to 9; there are 1"):
        read_down(folder)
    rewrite(folder, qzeros=torch.zeros(4, 1, dtype=torch.int32))
    with pytest.raises(BadModel, match=r"tensor model\.layers\.0\.down\.qzeros has shape \[4, 1\]"):
        read_down(folder)
    rewrite(folder, qzeros=None)
    with pytest.raises(BadModel, match=r"no tensor model\.layers\.0\.down\.qzeros in the checkpoint"):
        read_down(folder)
    with pytest.raises(BadModel, match=r"no tensor model\.layers\.9\.down\.qweight"):
        PackedSource(folder).tensor("model.layers.9.down.weight")


def test_scales_that_are_not_finite_are_named(base: Path) -> None:
    folder, _ = make(base, layer((16, 64), (8, 64)), AWQ)
    rewrite(folder, scales=torch.full((1, 8), float("nan")).half())
    with pytest.raises(BadModel, match=r"tensor model\.layers\.0\.down\.scales holds 8 NaN or infinite values"):
        read_down(folder)
