import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.model.checkpoint import Checkpoint

Change = Callable[[Callable[[dict[str, Tensor]], None]], Path]
NORM = "model.norm.weight"


def shard(folder: Path) -> None:
    """Two shards and an index in the single file's place."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, folder / file)
    weight_map = {n: file for file, part in parts.items() for n in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_one_file_and_shards_hold_the_same(copy: Path) -> None:
    whole = {n: Checkpoint(copy).tensor(n).clone() for n in Checkpoint(copy).names()}
    shard(copy)
    sharded = Checkpoint(copy)
    assert set(sharded.names()) == set(whole)
    assert all(torch.equal(sharded.tensor(n), whole[n]) and sharded.shape(n) == tuple(whole[n].shape) for n in whole)


def test_a_missing_shard_is_named(copy: Path) -> None:
    shard(copy)
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadModel, match=r"model-00002-of-00002\.safetensors is missing"):
        Checkpoint(copy)


def test_a_tensor_of_the_index_that_its_shard_lacks_is_named(copy: Path) -> None:
    shard(copy)
    index = copy / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map["model.extra.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(BadModel, match=r"model\.extra\.weight"):
        Checkpoint(copy)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_an_index_that_is_none(copy: Path, index: str) -> None:
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BadModel, match="not a safetensors index"):
        Checkpoint(copy)


def test_an_index_does_not_lead_out_of_the_folder(copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {NORM: "../secret.safetensors"}}))
    with pytest.raises(BadModel, match="outside the folder"):
        Checkpoint(copy)


@pytest.mark.parametrize("keep", [0, 5, 200, -1000])
def test_a_truncated_file(copy: Path, keep: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadModel, match=r"model\.safetensors is damaged or truncated"):
        Checkpoint(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_names_its_tensor(changed: Change, value: float) -> None:
    def poison(tensors: dict[str, Tensor]) -> None:
        tensors[NORM][3] = value

    with pytest.raises(BadModel, match=r"model\.norm\.weight holds 1 NaN or infinite"):
        Checkpoint(changed(poison)).tensor(NORM)


def test_a_wrong_dtype_names_its_tensor(changed: Change) -> None:
    def to_integers(tensors: dict[str, Tensor]) -> None:
        tensors[NORM] = tensors[NORM].to(torch.int8)

    with pytest.raises(BadModel, match=r"model\.norm\.weight has dtype I8"):
        Checkpoint(changed(to_integers))


def test_pickled_weights_are_not_opened(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(BadModel, match="only pickled weights"):
        Checkpoint(copy)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"no model\.safetensors"):
        Checkpoint(tmp_path)
