"""What is written down comes back; nothing of it under another key, and nothing that is not named."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hubquant.artifact import Artifact, TensorRecord
from hubquant.bookmark import Bookmark
from hubquant.model.topology import Absorber, LayerInput
from hubquant.recipe import variant

INPUTS = [LayerInput(("q", "k"), Absorber("norm", torch.arange(4))), LayerInput(("o",), None, "q")]


def writer(name: str, state: dict[str, Any]) -> Any:
    return SimpleNamespace(variant=variant(name), state=lambda: state)


def test_a_standing_comes_back(tmp_path: Path) -> None:
    shared = torch.randn(3)
    marked = Bookmark(tmp_path / "b", "key")
    assert not marked.begun
    marked.standing.next_layer, marked.standing.inputs[0] = 3, INPUTS
    done = Artifact(variant="gguf-q4_0", folder="gguf", files={}, size_bytes=1, bits_per_weight=0.1)
    marked.standing.finished["gguf-q4_0"] = done
    record = TensorRecord(name="q", type="Q8_0", output_error=0.1 + 0.2)
    marked.save([writer("gguf-q8_0", {"sums": {"q": shared}, "records": [record]}), writer("gguf-q6_k", {"sums": {"q": shared}})])
    found = Bookmark(tmp_path / "b", "key")
    assert found.begun and found.standing.next_layer == 3 and found.standing.finished == {"gguf-q4_0": done}
    states = found.standing.writers
    assert torch.equal(states["gguf-q8_0"]["sums"]["q"], shared)
    assert states["gguf-q8_0"]["sums"]["q"] is states["gguf-q6_k"]["sums"]["q"], "written once"
    assert TensorRecord.model_validate(states["gguf-q8_0"]["records"][0]) == record
    first, second = found.standing.inputs[0]
    assert first.linears == ("q", "k") and first.absorber is not None and torch.equal(first.absorber.channels, torch.arange(4))
    assert second == INPUTS[1]


def test_a_standing_of_before_a_field_was_there_comes_back(tmp_path: Path) -> None:
    marked = Bookmark(tmp_path / "b", "key")
    marked.standing.next_layer = 3
    marked.save([])
    path = marked.folder / "bookmark.json"
    told = json.loads(path.read_text())
    del told["peak_memory_bytes"]
    path.write_text(json.dumps(told))
    found = Bookmark(tmp_path / "b", "key").standing
    assert found.next_layer == 3 and found.peak_memory_bytes == 0


def test_a_save_leaves_only_what_it_names_and_another_key_nothing(tmp_path: Path) -> None:
    marked = Bookmark(tmp_path / "b", "key")
    for name in ("hidden-0", "hidden-1", "half.part"):
        (marked.folder / name).write_text("")
    marked.standing.next_layer = 1
    marked.save([])
    marked.save([])
    assert sorted(path.name for path in marked.folder.iterdir()) == ["bookmark.json", "hidden-1", "tensors-2.safetensors"]
    other = Bookmark(tmp_path / "b", "other key")
    assert not other.begun and not list(other.folder.iterdir())
    other.remove()
    assert not (tmp_path / "b").exists()
