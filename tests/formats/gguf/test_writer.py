"""The file is read by gguf's own reader here, which knows nothing of ours."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hubquant.calibrate.statistics import InputStatistics
from hubquant.errors import BadModel, DiskFull
from hubquant.formats.gguf.imatrix import ImatrixInfo
from hubquant.formats.gguf.metadata import Provenance
from hubquant.formats.gguf.reader import GgufSource
from hubquant.formats.gguf.writer import GgufWriter
from hubquant.recipe import Variant

Shapes = dict[str, tuple[int, ...]]


@pytest.fixture
def shapes(demo_weights: dict[str, Tensor]) -> Shapes:
    return {name: tuple(weight.shape) for name, weight in demo_weights.items()}


@pytest.fixture
def opened(tmp_path: Path, demo_folder: Path, provenance: Provenance, shapes: Shapes) -> Callable[..., GgufWriter]:
    def open_writer(mixture: str = "Q8_0", **changes: Any) -> GgufWriter:
        config = {**json.loads((demo_folder / "config.json").read_text()), **changes.pop("config", {})}
        variant = Variant(name="gguf", format="gguf", bits=8, mixture=mixture)
        options = {"tensors": shapes, "provenance": provenance, **changes}
        return GgufWriter(tmp_path / "m.gguf", demo_folder, config, variant, **options)

    return open_writer


def permuted(weight: Tensor, heads: int) -> Tensor:
    """Rows of q and k as llama.cpp wants them: row i of the first and of the second half of each head side by side."""
    halves = weight.view(heads, 2, weight.shape[0] // heads // 2, -1)
    return torch.stack([halves[:, 0], halves[:, 1]], dim=2).reshape(weight.shape)


@pytest.mark.parametrize("mixture", ["F32", "Q8_0", "Q4_K_M"])
def test_gguf_reads_every_tensor_where_it_belongs(
    mixture: str, demo_gguf: Callable[[str], Path], demo_weights: dict[str, Tensor]
) -> None:
    reader = gguf.GGUFReader(demo_gguf(mixture))
    tensors = {t.name: t for t in reader.tensors}
    assert len(tensors) == len(demo_weights)
    assert all(t.data_offset % 32 == 0 for t in reader.tensors)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 4)
    for hf_name, weight in demo_weights.items():
        stored = tensors[names.get_name(hf_name, try_suffixes=(".weight",))]
        assert tuple(stored.shape) == tuple(weight.shape)[::-1]
        heads = {"q_proj": 4, "k_proj": 2}.get(hf_name.split(".")[-2])
        expected = (permuted(weight, heads) if heads else weight).numpy()
        values = gguf.dequantize(stored.data, stored.tensor_type)
        tolerance = {"F32": 0.0, "Q8_0": 0.01, "Q4_K": 0.1, "Q6_K": 0.03}[stored.tensor_type.name]
        assert np.linalg.norm(values - expected) <= tolerance * np.linalg.norm(expected), hf_name


def test_metadata_of_the_whole_file(demo_gguf: Callable[[str], Path], tmp_path: Path) -> None:
    path = demo_gguf("Q4_K_M")
    fields = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert fields["general.license"] == "cc0-1.0"
    assert fields["llama.attention.head_count_kv"] == 2
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert len(fields["tokenizer.ggml.tokens"]) == 2048
    assert fields["quantize.imatrix.entries_count"] == 28
    strings = " ".join(str(value) for key, value in fields.items() if not key.startswith("tokenizer"))
    assert str(path.parent) not in strings
    assert "/home" not in strings
    assert "/tmp" not in strings


def test_the_order_of_the_calls_does_not_matter(
    demo_weights: dict[str, Tensor], opened: Callable[..., GgufWriter], tmp_path: Path
) -> None:
    files = []
    for names in (list(demo_weights), list(demo_weights)[::-1]):
        with opened() as writer:
            for name in names:
                writer.add(name, demo_weights[name])
            writer.finish()
        files.append((tmp_path / "m.gguf").read_bytes())
    assert files[0] == files[1]


def test_what_add_reports(opened: Callable[..., GgufWriter], demo_weights: dict[str, Tensor]) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def measure(weight: Tensor, stored: Tensor) -> float:
        seen.append((weight, stored))
        return 0.25

    name = "model.layers.0.self_attn.q_proj.weight"
    with opened() as writer:
        record = writer.add(name, demo_weights[name].bfloat16(), measure=measure)
    assert (record.name, record.type, record.output_error, record.note) == (name, "Q8_0", 0.25, "")
    weight, stored = seen[0]
    torch.testing.assert_close(weight, demo_weights[name].bfloat16().float())
    assert (stored - weight).norm() < 0.01 * weight.norm()  # in the order of the checkpoint, not of the file


@pytest.mark.parametrize("name", ["self_attn.q_proj", "mlp.down_proj"])
def test_the_output_error_is_that_of_what_is_read_back(
    name: str, opened: Callable[..., GgufWriter], demo_weights: dict[str, Tensor]
) -> None:
    """Also of rows that the file has in another order."""
    name = f"model.layers.0.{name}.weight"
    statistics = InputStatistics(demo_weights[name].shape[1])
    statistics.add(torch.randn(2048, statistics.width, generator=torch.Generator().manual_seed(1)))
    with opened("Q4_K_M") as writer:
        records = {n: writer.add(n, w, statistics=statistics if n == name else None) for n, w in demo_weights.items()}
        writer.finish()
    stored = GgufSource(writer.path).tensor(name)
    expected = statistics.output_error(demo_weights[name], stored)
    assert expected > 0
    assert records[name].output_error == pytest.approx(expected, rel=1e-4)  # float32 sums in another order


def test_a_fallback_is_noted(random_model: Callable[[str], Path], provenance: Provenance, tmp_path: Path) -> None:
    folder = random_model("llama")
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: tuple(w.shape) for name, w in load_file(folder / "model.safetensors").items()}
    variant = Variant(name="gguf-q4_k_m", format="gguf", bits=4, mixture="Q4_K_M")
    with GgufWriter(tmp_path / "m.gguf", folder, config, variant, tensors=tensors, provenance=provenance) as writer:
        record = writer.add("model.layers.1.mlp.up_proj.weight", torch.randn(96, 64))
    assert record.type == "Q5_0"
    assert record.note == "rows of 64 are no whole blocks of Q4_K: Q5_0, as llama.cpp does"


def test_a_tied_head_and_derived_buffers_are_not_stored(opened: Callable[..., GgufWriter], shapes: Shapes) -> None:
    more = {**shapes, "lm_head.weight": (2048, 256), "model.layers.0.self_attn.rotary_emb.inv_freq": (32,)}
    with opened(tensors=more) as writer:
        assert writer.type_of("lm_head.weight") is None
        assert writer.type_of("model.layers.0.self_attn.rotary_emb.inv_freq") is None
        assert writer.gguf_names("model.norm.weight") == ("output_norm.weight",)
        assert writer.type_of("model.norm.weight") == "F32"
    with opened(tensors=more, config={"tie_word_embeddings": False}) as writer:
        assert writer.type_of("lm_head.weight") == "Q8_0"


def test_nothing_has_a_name_before_the_end(
    opened: Callable[..., GgufWriter], demo_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    with opened() as writer:
        writer.add("model.norm.weight", demo_weights["model.norm.weight"])
        assert [p.name for p in tmp_path.iterdir()] == ["m.gguf.part"]
        with pytest.raises(BadModel, match=r"37 tensors were never written, the first is model\.embed_tokens\.weight"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"model_type": "bloom", "architectures": ["BloomForCausalLM"]}}, "BloomForCausalLM"),
        ({"config": {"vocab_size": 2049}}, "2048 rows, config.json says vocab_size 2049"),
        ({"config": {"num_hidden_layers": 5}}, r"no tensor model\.layers\.4\.input_layernorm"),
        ({"config": {"hidden_act": "relu"}}, "hidden_act"),
        ({"tensors": {"model.norm.weight": (256,)}}, "no tensor model.embed_tokens.weight"),
    ],
)
def test_what_cannot_be_written_is_refused_before_a_byte(
    opened: Callable[..., GgufWriter], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadModel, match=message):
        opened(**changes)
    assert list(tmp_path.iterdir()) == []


def test_bad_tensors_are_named(opened: Callable[..., GgufWriter]) -> None:
    with opened() as writer:
        with pytest.raises(BadModel, match=r"model\.norm\.weight has shape \(255,\), announced was \(256,\)"):
            writer.add("model.norm.weight", torch.zeros(255))
        weight = torch.zeros(256, 768)
        weight[3, 4] = float("nan")
        with pytest.raises(BadModel, match=r"tensor model\.layers\.0\.mlp\.down_proj\.weight: .*NaN"):
            writer.add("model.layers.0.mlp.down_proj.weight", weight)


def test_a_full_disk_is_told_before_the_work(
    opened: Callable[..., GgufWriter], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_space(_fd: int, _start: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(DiskFull, match=r"m\.gguf\.part needs 3,9.* bytes"):
        opened()
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_not_unicode_is_refused(
    demo_folder: Path, shapes: Shapes, opened: Callable[..., GgufWriter], provenance: Provenance, tmp_path: Path
) -> None:
    with pytest.raises(BadModel, match="not Unicode"):
        opened(provenance=provenance.model_construct(**{**dict(provenance), "license": "\ud800"}))
    assert list(tmp_path.iterdir()) == []


def test_the_imatrix_is_named_not_located(
    opened: Callable[..., GgufWriter], demo_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    with opened(imatrix=ImatrixInfo("imatrix.gguf", "prose-calib", 64)) as writer:
        for name, weight in demo_weights.items():
            writer.add(name, weight)
        writer.finish()
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["quantize.imatrix.file"].contents() == "imatrix.gguf"
    assert fields["quantize.imatrix.chunks_count"].contents() == 64
