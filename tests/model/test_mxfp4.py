"""Weights published as MXFP4: decoded as transformers decodes them, and read as the dense model they stand for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from hubquant.errors import BadModel
from hubquant.model import mxfp4
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.decoder import Decoder, read_config


def random_blocks(experts: int, out: int, width: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(out)
    blocks = torch.randint(0, 256, (experts, out, width // 32, 16), generator=random, dtype=torch.uint8)
    return blocks, torch.randint(118, 124, (experts, out, width // 32), generator=random, dtype=torch.uint8)


def test_it_decodes_as_transformers_does() -> None:
    blocks, scales = random_blocks(3, 6, 64)
    decoded = mxfp4.decode(blocks, scales)
    assert torch.equal(decoded, convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
    assert tuple(decoded.shape) == mxfp4.shape(tuple(blocks.shape)) == (3, 64, 6)


@pytest.fixture
def published(mixture_of_experts: Callable[[str], Path], tmp_path: Path) -> Path:
    """gpt-oss as it is published."""
    folder = tmp_path / "gpt-oss"
    shutil.copytree(mixture_of_experts("gpt_oss"), folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, out = tensors.pop(name).shape
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = random_blocks(experts, out, width)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_published_model_is_read_expert_by_expert(published: Path) -> None:
    decoder = Decoder(read_config(published), Checkpoint(published))
    stored, path = load_file(published / "model.safetensors"), "model.layers.1.mlp.experts"
    whole = mxfp4.decode(stored[f"{path}.gate_up_proj_blocks"], stored[f"{path}.gate_up_proj_scales"])
    assert torch.equal(decoder.source.tensor(f"{path}.2.gate_proj.weight"), whole[2][:, ::2].T)
    assert torch.equal(decoder.source.tensor(f"{path}.2.up_proj.weight"), whole[2][:, 1::2].T)
    assert torch.equal(Checkpoint(published).tensor(f"{path}.gate_up_proj"), whole)
    assert (
        f"{path}.gate_up_proj" in Checkpoint(published).names()
        and f"{path}.gate_up_proj_blocks" not in Checkpoint(published).names()
    )


def test_bytes_without_scales_are_no_weights(published: Path) -> None:
    tensors = load_file(published / "model.safetensors")
    del tensors["model.layers.0.mlp.experts.down_proj_scales"]
    save_file(tensors, published / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadModel, match=r"down_proj_blocks has dtype U8; expected"):
        Checkpoint(published)
