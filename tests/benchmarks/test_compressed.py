"""Decoding compressed-tensors against what compressed-tensors 0.19.0 itself packed and unpacked (data/compressed-tensors.json)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peers.compressed import CompressedSource, decode
from safetensors.torch import save_file
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.model.checkpoint import TensorSource

KEPT: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "compressed-tensors.json").read_text())
INTEGERS = {
    "weight_packed": torch.int32,
    "weight_zero_point": torch.int32,
    "weight_shape": torch.int64,
    "weight_g_idx": torch.int32,
}


def parts(name: str) -> dict[str, Tensor]:
    return {part: torch.tensor(values, dtype=INTEGERS.get(part)) for part, values in KEPT[name]["parts"].items()}


@pytest.mark.parametrize("name", KEPT)
def test_codes_and_scales_are_decoded_as_by_their_maker(name: str) -> None:
    assert torch.equal(decode(parts(name), KEPT[name]["bits"]), torch.tensor(KEPT[name]["dense"]))


def test_an_index_of_groups_replaces_their_order() -> None:
    stored = parts("int4-symmetric")
    swapped = stored | {"weight_scale": stored["weight_scale"].flip(1), "weight_g_idx": (torch.arange(64) < 32).int()}
    assert torch.equal(decode(swapped, 4), torch.tensor(KEPT["int4-symmetric"]["dense"]))


def test_a_folder_gives_weights_by_their_names(tmp_path: Path) -> None:
    norm = torch.rand(64)
    save_file({f"a.{k}": v for k, v in parts("int3-symmetric").items()} | {"norm.weight": norm}, tmp_path / "model.safetensors")
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 3}}}}
    write(tmp_path, config | {"format": "pack-quantized"})
    source: TensorSource = CompressedSource(tmp_path)
    assert set(source.names()) == {"a.weight", "norm.weight"}
    assert torch.equal(source.tensor("norm.weight"), norm)
    assert torch.equal(source.tensor("a.weight"), torch.tensor(KEPT["int3-symmetric"]["dense"]))
    source.release()
    write(tmp_path, config | {"format": "float-quantized"})
    with pytest.raises(BadModel, match="float-quantized"):
        CompressedSource(tmp_path)
    write(tmp_path, {"quant_method": "gptq"})
    with pytest.raises(BadModel, match="not a compressed-tensors folder"):
        CompressedSource(tmp_path)


def write(folder: Path, quantization: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
