from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from hubquant.errors import BadModel
from hubquant.formats.gguf.imatrix import Imatrix


@pytest.fixture
def imatrix() -> Imatrix:
    made = Imatrix("prose-calib", chunks=3, chunk_size=512)
    made.add("blk.1.ffn_down.weight", torch.arange(8.0) * 1536, 1536)
    made.add("blk.0.attn_q.weight", torch.full((4,), 3.0), 1536)
    return made


def test_it_is_laid_out_as_llama_imatrix_does(imatrix: Imatrix, tmp_path: Path) -> None:
    imatrix.write(tmp_path / "imatrix.gguf")
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert fields == {
        "general.type": "imatrix",
        "imatrix.datasets": ["prose-calib"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 512,
    }
    assert [t.name for t in reader.tensors] == [
        "blk.0.attn_q.weight.in_sum2",
        "blk.0.attn_q.weight.counts",
        "blk.1.ffn_down.weight.in_sum2",
        "blk.1.ffn_down.weight.counts",
    ]
    np.testing.assert_array_equal(reader.tensors[2].data, np.arange(8.0) * 1536)
    np.testing.assert_array_equal(reader.tensors[3].data, [1536.0])
    assert [p.name for p in tmp_path.iterdir()] == ["imatrix.gguf"]


def test_it_reads_back(imatrix: Imatrix, tmp_path: Path) -> None:
    imatrix.write(tmp_path / "imatrix.gguf")
    found = Imatrix.read(tmp_path / "imatrix.gguf")
    assert (found.dataset, found.chunks, found.chunk_size, found.counts) == ("prose-calib", 3, 512, imatrix.counts)
    torch.testing.assert_close(found.importance("blk.1.ffn_down.weight"), torch.arange(8.0))


def test_a_stack_has_a_row_for_each_expert(imatrix: Imatrix, tmp_path: Path) -> None:
    imatrix.add("blk.0.ffn_up_exps.weight", torch.full((4,), 6.0), 3, range(1, 2), of=3)
    imatrix.add("blk.0.ffn_up_exps.weight", torch.full((4,), 5.0), 10, range(2, 3), of=3)
    imatrix.write(tmp_path / "imatrix.gguf")
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "imatrix.gguf").tensors}
    assert stored["blk.0.ffn_up_exps.weight.in_sum2"].shape.tolist() == [4, 3]
    assert stored["blk.0.ffn_up_exps.weight.counts"].shape.tolist() == [1, 3]
    found = Imatrix.read(tmp_path / "imatrix.gguf")
    assert found.counts["blk.0.ffn_up_exps.weight"] == [0, 3, 10]
    # what no token reached counts as 1, as in llama.cpp
    assert found.importance("blk.0.ffn_up_exps.weight").tolist() == [[1.0] * 4, [2.0] * 4, [0.5] * 4]


def test_libgguf_reads_it(imatrix: Imatrix, tmp_path: Path) -> None:
    libgguf = pytest.importorskip("libgguf")
    imatrix.write(tmp_path / "imatrix.gguf")
    theirs = libgguf.load_imatrix(str(tmp_path / "imatrix.gguf"))
    np.testing.assert_allclose(theirs["blk.1.ffn_down.weight"], np.arange(8.0))


def test_other_files_are_refused(imatrix: Imatrix, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    with pytest.raises(BadModel, match="cannot be read as a GGUF file"):
        Imatrix.read(path)
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with pytest.raises(BadModel, match="not an importance matrix"):
        Imatrix.read(path)
    imatrix.add("blk.0.attn_q.weight", torch.ones(4), 0)
    imatrix.write(path)
    with pytest.raises(BadModel, match=r"blk\.0\.attn_q\.weight\.counts is \[0\.0\]"):
        Imatrix.read(path)
