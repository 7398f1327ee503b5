"""GGUF files as bases: what is taken over, what is made anew, and what is refused."""

from pathlib import Path

import gguf
import pytest
import torch

from hubquant.errors import BadModel
from hubquant.formats.gguf.header import GgufHeader
from hubquant.formats.gguf.imatrix import Imatrix
from hubquant.formats.gguf.skeleton import Skeleton, SkeletonWriter
from hubquant.quantize.ggml import encode
from hubquant.recipe import variant

WIDTH, ROWS = 256, 8


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of an architecture that hubquant has no row for, with a stack of experts, odd keys and float64."""
    path = tmp_path_factory.mktemp("skeleton") / "m-F16.gguf"
    writer = gguf.GGUFWriter(path, "arctic")
    writer.add_uint32("arctic.block_count", 1)
    writer.add_uint32("arctic.attention.head_count", 4)
    writer.add_array("arctic.attention.head_count_kv", [4])
    writer.add_float64("arctic.odd", 0.1)
    writer.add_uint8("arctic.small", 7)
    writer.add_array("tokenizer.ggml.tokens", ["a", "ß"])
    writer.add_uint32("general.file_type", 1)
    writer.add_string("quantize.imatrix.file", "/home/somebody/imatrix.dat")
    writer.add_custom_alignment(256)
    torch.manual_seed(0)
    for name, shape in {
        "token_embd.weight": (2, WIDTH),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.attn_q.weight": (ROWS, WIDTH),
        "blk.0.attn_k.weight": (ROWS, WIDTH),
        "blk.0.ffn_up_exps.weight": (3, ROWS, WIDTH),
    }.items():
        values = torch.randn(shape)
        writer.add_tensor(name, (values if len(shape) == 1 else values.half()).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def imatrix() -> Imatrix:
    made = Imatrix("text", chunks=2, chunk_size=512)
    for i, name in enumerate(("blk.0.attn_q.weight", "blk.0.attn_k.weight")):
        made.add(name, torch.rand(WIDTH, generator=torch.Generator().manual_seed(i)) * 1024, 1024)
    for expert in range(3):
        importance = torch.rand(WIDTH, generator=torch.Generator().manual_seed(9 + expert)) * 64
        made.add("blk.0.ffn_up_exps.weight", importance, 64, range(expert, expert + 1), 3)
    return made


def write(plain: Path, mixture: str, folder: Path, imatrix: Imatrix | None) -> GgufHeader:
    artifact = SkeletonWriter(variant(f"gguf-{mixture.lower()}"), folder, "m", Skeleton(plain), imatrix).finish()
    assert artifact.size_bytes == (folder / artifact.main_file).stat().st_size
    return GgufHeader.read(folder / artifact.main_file)


def test_keys_are_taken_over_as_they_are_stored(plain: Path, tmp_path: Path) -> None:
    before, after = GgufHeader.read(plain), write(plain, "Q4_K_M", tmp_path, None)
    for key, value in before.values.items():
        if key not in ("general.file_type", "quantize.imatrix.file", "general.alignment"):
            assert after.values[key] == value, key
            assert after.kinds[key] == before.kinds[key], key
    assert after.values["general.file_type"] == 15
    assert not [key for key in after.values if key.startswith("quantize.imatrix")]  # nor the path of somebody's machine
    assert "general.alignment" not in after.values  # tensors lie as GGUF has them without: multiples of 32
    assert set(after.values) - set(before.values) == {"general.quantization_version", "hubquant.version"}


def test_every_matrix_is_encoded_with_its_own_importance(plain: Path, imatrix: Imatrix, tmp_path: Path) -> None:
    before, after = GgufHeader.read(plain), write(plain, "Q4_K_S", tmp_path, imatrix)
    kinds = {name: tensor.kind.name for name, tensor in after.tensors.items()}
    assert kinds["blk.0.attn_q.weight"] == "Q4_K"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight"):
        stored = after.tensors[name]
        bytes_ = after.data[0][stored.offset : stored.offset + stored.size_bytes]
        expected = encode(before.tensor(name), stored.kind.name, imatrix.importance(name))
        assert bytes_ == expected.numpy().tobytes()
    stored = after.tensors["blk.0.ffn_up_exps.weight"]
    each = stored.size_bytes // 3
    for expert in range(3):
        start = stored.offset + expert * each
        importance = imatrix.importance("blk.0.ffn_up_exps.weight")[expert]
        expected = encode(before.tensor("blk.0.ffn_up_exps.weight", expert, 1)[0], stored.kind.name, importance)
        assert after.data[0][start : start + each] == expected.numpy().tobytes()
    assert after.values["quantize.imatrix.entries_count"] == 3
    assert Imatrix.read(tmp_path / "imatrix.gguf").counts == imatrix.counts


def test_types_that_need_an_importance_matrix(plain: Path, imatrix: Imatrix, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="writes with an importance matrix only"):
        write(plain, "IQ2_XXS", tmp_path, None)
    partial = Imatrix("text", chunks=2, chunk_size=512)
    partial.add("blk.0.attn_k.weight", torch.ones(WIDTH), 1024)
    with pytest.raises(BadModel, match=r"tensor blk\.0\.attn_q\.weight would be IQ2_XXS, which needs an importance matrix"):
        write(plain, "IQ2_XXS", tmp_path, partial)
    assert not list(tmp_path.iterdir())
    assert write(plain, "IQ2_XXS", tmp_path, imatrix).tensors["blk.0.attn_q.weight"].kind.name == "IQ2_XXS"


def test_an_importance_matrix_of_another_model(plain: Path, tmp_path: Path) -> None:
    other = Imatrix("text", chunks=1, chunk_size=512)
    other.add("blk.0.attn_q.weight", torch.ones(WIDTH * 2), 512)
    with pytest.raises(BadModel, match=r"shape \[512\] for blk\.0\.attn_q\.weight, the tensor needs \[256\]: of another model\?"):
        write(plain, "Q4_K_S", tmp_path, other)


def test_what_is_already_quantized(plain: Path, tmp_path: Path) -> None:
    write(plain, "Q8_0", tmp_path, None)
    with pytest.raises(BadModel, match=r"m-Q8_0\.gguf: tensor token_embd\.weight is already Q8_0; name a file in F16"):
        Skeleton(tmp_path / "m-Q8_0.gguf")


def test_names_through_the_gguf_packages_map(plain: Path) -> None:
    skeleton = Skeleton(plain)
    assert skeleton.mapped("model.layers.0.self_attn.q_proj.weight", WIDTH) == [("blk.0.attn_q.weight", range(1), 1)]
    assert skeleton.mapped("model.layers.0.self_attn.q_proj.weight", 2 * WIDTH) == []  # its input is not what is multiplied there
    assert skeleton.mapped("model.layers.0.self_attn.v_proj.weight", WIDTH) == []  # the file has none
    assert skeleton.mapped("model.layers.0.nonsense.weight", WIDTH) == []
