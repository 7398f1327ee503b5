"""Files and shards, byte places and names; llama.cpp's own splitting is the model (gguf-split)."""

import shutil
from pathlib import Path

import gguf
import pytest
import torch

from hubquant.errors import BadModel, DiskFull
from hubquant.formats.gguf.file import GgufFile, TensorPlan
from hubquant.formats.gguf.header import GgufHeader
from hubquant.formats.gguf.metadata import Typed, Value
from hubquant.quantize.ggml import encode

PLANS = {
    "a.weight": TensorPlan("Q8_0", (4, 64)),
    "b.weight": TensorPlan("F32", (8,)),
    "stack.weight": TensorPlan("Q4_0", (3, 2, 32)),
}
VALUES: dict[str, Value | Typed] = {
    "general.name": "ßplit",
    "llama.block_count": 1,
    "precise": Typed(0.1, gguf.GGUFValueType.FLOAT64),
    "bytes": Typed([1, 2, 255], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8),
}
ROWS = {name: torch.randn(plan.shape, generator=torch.Generator().manual_seed(0)) for name, plan in PLANS.items()}


def written(path: Path, max_bytes: int = 1 << 30) -> GgufFile:
    file = GgufFile(path, "llama", VALUES, PLANS, max_bytes)
    for name in ("stack.weight", "b.weight", "a.weight"):  # in another order than they lie in
        rows, plan = ROWS[name], PLANS[name]
        for start in range(plan.shape[0] if rows.ndim > 1 else 1):
            part = rows[start : start + 1].flatten(0, -2) if rows.ndim > 1 else rows[None]
            file.write(name, start, encode(part, plan.kind))
    file.finish()
    return file


def check(path: Path) -> None:
    header = GgufHeader.read(path)
    assert {k: v for k, v in header.values.items() if not k.startswith("split.")} == {
        "general.architecture": "llama", "general.name": "ßplit", "llama.block_count": 1, "precise": 0.1, "bytes": [1, 2, 255]
    }  # fmt: skip
    for name, rows in ROWS.items():
        steps = {"Q8_0": 127, "F32": 2**24, "Q4_0": 8}[PLANS[name].kind]
        # a scale is float16: its own rounding adds 2⁻¹¹ of the largest value
        assert (header.tensor(name) - rows).abs().max() <= rows.abs().max() * (1 / steps + 2**-11)
    assert torch.equal(header.tensor("stack.weight", 1, 1), header.tensor("stack.weight")[1:2])


def test_one_file(tmp_path: Path) -> None:
    file = written(tmp_path / "m.gguf")
    assert file.paths == [tmp_path / "m.gguf"]
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    check(tmp_path / "m.gguf")
    kinds = GgufHeader.read(tmp_path / "m.gguf").kinds
    assert (kinds["precise"], kinds["bytes"], kinds["llama.block_count"]) == ((12, None), (9, 0), (4, None))


def test_shards(tmp_path: Path) -> None:
    """Split as llama.cpp's gguf-split does: all keys in the first, split.* in each."""
    file = written(tmp_path / "m.gguf", max_bytes=300)
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert file.paths == [tmp_path / "m" / name for name in names]
    check(tmp_path / "m" / names[0])
    readers = [gguf.GGUFReader(path) for path in file.paths]
    assert [[t.name for t in r.tensors] for r in readers] == [["a.weight"], ["b.weight", "stack.weight"]]
    second = {key: field.contents() for key, field in readers[1].fields.items() if not key.startswith("GGUF.")}
    assert second == {"split.no": 1, "split.count": 2, "split.tensors.count": 3}
    types = [readers[0].fields[f"split.{key}"].types[0] for key in ("no", "count", "tensors.count")]
    assert types == [gguf.GGUFValueType.UINT16, gguf.GGUFValueType.UINT16, gguf.GGUFValueType.INT32]


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    first, second = written(tmp_path / "m.gguf", max_bytes=300).paths
    with pytest.raises(BadModel, match="is not the first shard of 2; name that one"):
        GgufHeader.read(second)
    renamed = tmp_path / "m.gguf"
    shutil.copyfile(first, renamed)
    with pytest.raises(BadModel, match=r"one of 2 shards, but is not named …-00001-of-0000N\.gguf"):
        GgufHeader.read(renamed)
    shutil.copyfile(first, second)
    with pytest.raises(BadModel, match=r"m-00002-of-00002\.gguf does not continue m-00001"):
        GgufHeader.read(first)
    second.unlink()
    with pytest.raises(BadModel, match=r"m-00002-of-00002\.gguf cannot be read"):
        GgufHeader.read(first)


def test_nothing_stands_there_before_the_end_or_after_discarding(tmp_path: Path) -> None:
    file = GgufFile(tmp_path / "m.gguf", "llama", VALUES, PLANS, 300)
    assert not any(path.exists() for path in file.paths)
    file.discard()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("max_bytes", [300, 1 << 30])
@pytest.mark.parametrize("named", [0, 1])
def test_a_second_file_goes_on_in_the_parts_of_the_first(tmp_path: Path, max_bytes: int, named: int) -> None:
    """`named`: how many of its files had their final names when the first was killed."""
    clean = [path.read_bytes() for path in written(tmp_path / "clean.gguf", max_bytes).paths]
    first = GgufFile(tmp_path / "m.gguf", "llama", VALUES, PLANS, max_bytes)
    first.write("a.weight", 0, encode(ROWS["a.weight"].view(PLANS["a.weight"].shape[0], -1), PLANS["a.weight"].kind))
    first.sync()
    for path in first.paths[:named]:
        path.with_name(path.name + ".part").rename(path)
    second = GgufFile(tmp_path / "m.gguf", "llama", VALUES, PLANS, max_bytes)
    second.restore()
    for name in ("stack.weight", "b.weight"):
        rows, plan = ROWS[name], PLANS[name]
        second.write(name, 0, encode(rows.flatten(0, -2) if rows.ndim > 1 else rows[None], plan.kind))
    second.finish()
    assert [path.read_bytes() for path in second.paths] == clean
    assert not list(tmp_path.rglob("*.part*"))


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    huge = {"a.weight": TensorPlan("F32", (1 << 20, 1 << 20))}  # 4 TB
    with pytest.raises(DiskFull, match="needs 4,398,046,511,104 bytes"):
        GgufFile(tmp_path / "m.gguf", "llama", VALUES, huge, 1 << 60)
    assert not list(tmp_path.iterdir())
