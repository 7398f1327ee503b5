"""Streams of tensors become safetensors files that other readers accept, and nothing has its final name too early."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hubquant.formats.shards import ShardWriter, write_json
from hubquant.model.checkpoint import Checkpoint

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
)


def tensors() -> dict[str, Tensor]:
    """Every type, sizes that leave the next tensor unaligned, a scalar, an empty one, one that is not contiguous."""
    random = torch.Generator().manual_seed(0)
    result = {f"t.{dtype}": torch.randint(-100, 100, (3, 5), generator=random).to(dtype) for dtype in DTYPES}
    result["scalar"] = torch.tensor(2.5)
    result["empty"] = torch.zeros(0, 4)
    result["transposed"] = torch.randn(4, 6, generator=random).T
    result["slice"] = torch.randn(8, 8, generator=random)[2:5, ::3]
    return result


def written(folder: Path, values: dict[str, Tensor], **options: int) -> list[str]:
    writer = ShardWriter(folder, **options)
    for name, tensor in values.items():
        writer.add(name, tensor)
    return writer.finish()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[n].dtype == right[n].dtype and left[n].shape == right[n].shape and torch.equal(left[n], right[n]) for n in left
    )


def test_one_file_that_safetensors_reads(tmp_path: Path) -> None:
    values = tensors()
    assert written(tmp_path, values) == ["model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert same({n: file.get_tensor(n) for n in file.keys()}, values)  # noqa: SIM118 (not a dict)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors"]


def test_shards_and_their_index(tmp_path: Path) -> None:
    values = {f"layer.{i}": torch.full((10,), float(i)) for i in range(7)}  # 40 bytes each
    names = written(tmp_path, values, max_shard_bytes=100)
    shards = [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    assert names == [*shards, "model.safetensors.index.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 280
    assert index["weight_map"] == {f"layer.{i}": shards[i // 2] for i in range(7)}
    read: dict[str, Tensor] = {}
    for shard in shards:
        part = load_file(tmp_path / shard)
        assert sum(t.nbytes for t in part.values()) <= 100
        assert {index["weight_map"][n] for n in part} == {shard}
        read |= part
    assert same(read, values)


@pytest.mark.parametrize("limit", [100, 10**9])
def test_a_checkpoint_reads_them(tmp_path: Path, limit: int) -> None:
    values = {f"layer.{i}": torch.randn(5, 2) for i in range(5)}
    written(tmp_path, values, max_shard_bytes=limit)
    checkpoint = Checkpoint(tmp_path)
    assert same({n: checkpoint.tensor(n) for n in checkpoint.names()}, values)


def test_a_tensor_larger_than_a_shard_gets_one_of_its_own(tmp_path: Path) -> None:
    values = {"small": torch.zeros(2), "large": torch.zeros(100), "next": torch.zeros(2)}
    assert len(written(tmp_path, values, max_shard_bytes=100)) == 4
    assert same(load_file(tmp_path / "model-00002-of-00003.safetensors"), {"large": values["large"]})


def test_nothing_has_its_final_name_before_finish(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, max_shard_bytes=50)
    for i in range(3):
        writer.add(f"t{i}", torch.zeros(10))
        assert all(p.name.endswith(".part") for p in tmp_path.iterdir())
    writer.finish()
    assert not list(tmp_path.glob("*.part"))


def test_what_an_interrupted_run_left_is_replaced(tmp_path: Path) -> None:
    interrupted = ShardWriter(tmp_path)
    interrupted.add("lost", torch.ones(1000))
    (tmp_path / "model.safetensors.part").write_bytes(b"half a file")
    values = {"kept": torch.arange(3.0)}
    written(tmp_path, values)
    assert same(load_file(tmp_path / "model.safetensors"), values)
    assert not list(tmp_path.glob("*.part"))


def test_what_a_finished_run_left_is_replaced(tmp_path: Path) -> None:
    """Three shards and their index, then a run that needs one file: the old index would lead readers to the old weights."""
    written(tmp_path, {f"old.{i}": torch.zeros(10) for i in range(3)}, max_shard_bytes=40)
    (tmp_path / "config.json").write_text("{}")
    values = {"new": torch.ones(3)}
    writer = ShardWriter(tmp_path)
    writer.add("new", values["new"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "shard-0.data.part"]
    writer.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    checkpoint = Checkpoint(tmp_path)
    assert same({n: checkpoint.tensor(n) for n in checkpoint.names()}, values)


def test_a_second_writer_goes_on_where_the_first_one_s_state_was_taken(tmp_path: Path) -> None:
    """What the first wrote after that is overwritten; shards that had their names when it was killed are kept."""
    values = {f"t{i}": torch.full((10,), float(i)) for i in range(6)}  # 40 bytes each, two in a shard
    first = ShardWriter(tmp_path, max_shard_bytes=100)
    for name in ("t0", "t1", "t2"):
        first.add(name, values[name])
    state = json.dumps(first.state())
    first.add("lost", torch.full((10,), -1.0))
    first.add("lost, too", torch.full((10,), -2.0))
    second = ShardWriter(tmp_path, max_shard_bytes=100)
    second.restore(json.loads(state))
    for name in ("t3", "t4", "t5"):
        second.add(name, values[name])
    state = json.dumps(second.state())
    last = second.finish()[-2]
    (tmp_path / last).unlink()  # as if it had been killed before the last shard was in place
    (tmp_path / "shard-2.data.part").write_bytes(torch.stack([values["t4"], values["t5"]]).numpy().tobytes() + b"lost")
    third = ShardWriter(tmp_path, max_shard_bytes=100)
    third.restore(json.loads(state))
    third.finish()
    checkpoint = Checkpoint(tmp_path)
    assert same({n: checkpoint.tensor(n) for n in checkpoint.names()}, values)
    assert not list(tmp_path.glob("*.part"))


def test_no_tensors_make_a_valid_file(tmp_path: Path) -> None:
    written(tmp_path, {})
    assert load_file(tmp_path / "model.safetensors") == {}
    assert not list(tmp_path.glob("*.part"))


def test_an_empty_tensor_alone_leaves_nothing_behind(tmp_path: Path) -> None:
    written(tmp_path, {"empty": torch.zeros(0, 3)})
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors")["empty"].shape == (0, 3)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), limit=st.integers(1, 200))
def test_any_sizes_and_any_limit_lose_nothing(tmp_path: Path, sizes: list[int], limit: int) -> None:
    values = {f"t{i}": torch.randn(size) for i, size in enumerate(sizes)}
    names = written(tmp_path, values, max_shard_bytes=limit)
    read: dict[str, Tensor] = {}
    for name in names:
        if name.endswith(".safetensors"):
            read |= load_file(tmp_path / name)
    assert same(read, values)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


def test_the_bytes_are_those_of_safetensors_own_writer(tmp_path: Path) -> None:
    """One tensor: no order to choose, so the two files agree in all but the header's spacing."""
    value = {"w": torch.randn(4, 4)}
    written(tmp_path / "ours", value)
    save_file(value, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours, theirs = (tmp_path / "ours" / "model.safetensors").read_bytes(), (tmp_path / "theirs.safetensors").read_bytes()

    def parts(raw: bytes) -> tuple[object, bytes]:
        end = 8 + int.from_bytes(raw[:8], "little")
        assert end % 8 == 0
        return json.loads(raw[8:end]), raw[end:]

    assert parts(ours) == parts(theirs)


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_json(path, {"name": "Łódź", "n": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Łódź", "n": 1}
    assert "Łódź" in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert json.loads(path.read_text())["n"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
