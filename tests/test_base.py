"""GGUF files as bases, through the whole line: what they say of themselves, calibration, requantizing, measuring."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from hubquant.artifact import Report
from hubquant.base import describe_gguf, device_named, open_base
from hubquant.cli import app
from hubquant.errors import BadModel, UsageError
from hubquant.formats.gguf.header import GgufHeader
from hubquant.formats.gguf.imatrix import Imatrix
from hubquant.quantize.ggml import decode, encode

BEFORE = {"rope_theta": 10000.0, "original_max_position_embeddings": 128}
FEW = ("--windows", "2", "--max-tokens", "1024")


def run(*arguments: str) -> Report:
    result = CliRunner().invoke(app, ["quantize", *arguments, "--json"], catch_exceptions=False)
    return Report.model_validate_json(result.stdout)


@pytest.fixture(scope="module")
def from_folder(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as BF16 and as Q4_K_M, from its folder."""
    out = tmp_path_factory.mktemp("base") / "out"
    run(str(bundled), "-o", str(out), "-v", "gguf-bf16", "-v", "gguf-q4_k_m", *FEW)
    return out / "gguf"


def test_what_a_file_says_of_itself(from_folder: Path) -> None:
    base = describe_gguf(from_folder / "model-BF16.gguf")
    assert (base.repo_id, base.architecture, base.parameters) == ("model", "llama", 3_672_320)
    with pytest.raises(BadModel, match="already Q6_K"):
        describe_gguf(from_folder / "model-Q4_K_M.gguf")


def test_with_an_importance_matrix_every_tensor_is_encoded_by_it(from_folder: Path, tmp_path: Path) -> None:
    """And without error feedback, which needs the tokens themselves."""
    given = ("--imatrix", str(from_folder / "imatrix.gguf"), "--max-tokens", "1024")
    report = run(str(from_folder / "model-BF16.gguf"), "-o", str(tmp_path / "out"), "-v", "gguf-q4_k_m", *given)
    assert report.calibration_tokens == 0
    ours, theirs = (GgufHeader.read(f) for f in (tmp_path / "out/gguf/model-Q4_K_M.gguf", from_folder / "model-Q4_K_M.gguf"))
    assert ours.tensors.keys() == theirs.tensors.keys()
    weights, imatrix = GgufHeader.read(from_folder / "model-BF16.gguf"), Imatrix.read(from_folder / "imatrix.gguf")
    for name, held in ours.tensors.items():
        assert held.kind == theirs.tensors[name].kind
        own = imatrix.importance(name) if name in imatrix.in_sum2 else None
        weight = weights.tensor(name)
        wanted = decode(encode(weight, held.kind.name, own), held.kind.name) if weight.ndim > 1 else weight
        assert torch.equal(ours.tensor(name), wanted), name
    assert report.evaluations[0].mean_kl < 0.02


def test_without_one_it_is_calibrated(from_folder: Path, tmp_path: Path) -> None:
    """The weights are the same, and so is the forward: the importance matrix is the folder's."""
    report = run(
        str(from_folder / "model-BF16.gguf"), "-o", str(tmp_path / "out"), "-v", "gguf-q3_k_m", "-v", "awq-int4-g128", *FEW
    )
    assert [a.variant for a in report.artifacts] == ["gguf-q3_k_m"]
    assert any("awq-int4-g128 not made: a GGUF file makes GGUF variants only" in note for note in report.notes)
    ours, theirs = (GgufHeader.read(folder / "imatrix.gguf") for folder in (tmp_path / "out/gguf", from_folder))
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name in ours.tensors:
        assert torch.equal(ours.tensor(name), theirs.tensor(name)), name


def test_a_file_that_transformers_cannot_run_is_encoded_and_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, "arctic")
    writer.add_uint32("arctic.block_count", 1)
    writer.add_uint32("arctic.attention.head_count", 4)
    writer.add_tensor("blk.0.attn_q.weight", np.random.default_rng(0).standard_normal((8, 256), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadModel, match="GGUF architecture 'arctic' cannot be read"):
        open_base(path)
    report = run(str(path), "-o", str(tmp_path / "out"), "-v", "gguf-q4_k_s")
    assert report.evaluations == ()
    assert not report.passed("gguf-q4_k_s")
    assert [note for note in report.notes if "without calibration and not measured" in note]
    assert GgufHeader.read(tmp_path / "out/gguf/odd-Q4_K_S.gguf").tensors["blk.0.attn_q.weight"].kind.name == "Q4_K"


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rope_parameters": {**LLAMA3, **BEFORE}}, r"transformers does not read rope_freqs\.weight"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, **BEFORE}},
            r"transformers takes rope\.scaling\.\w+ for None; the file says",
        ),
        ({"attention_bias": True}, r"the model that transformers makes of it has no model\.layers\.\d\.self_attn\.\w_proj\.bias"),
    ],
)
def test_a_file_that_transformers_would_run_as_another_model(
    change: dict[str, object], sentence: str, bundled: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(bundled, model)
    config = {**json.loads((bundled / "config.json").read_text()), **change}
    (model / "config.json").write_text(json.dumps(config))
    if "attention_bias" in change:
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
    run(str(model), "-o", str(tmp_path / "out"), "-v", "gguf-bf16", *FEW, "--max-tokens", "512")
    with pytest.raises(BadModel, match=f"^model-BF16.gguf cannot be run here, {sentence}"):
        open_base(tmp_path / "out/gguf/model-BF16.gguf")


def test_imatrix_goes_with_a_gguf_file(bundled: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["quantize", str(bundled), "-o", str(tmp_path / "out"), "--imatrix", "i.gguf"])
    assert "goes with a GGUF file" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_named() -> None:
    for name, why in (("gpu", "'gpu' is no device"), ("meta", "on cpu and cuda, not on meta")):
        with pytest.raises(UsageError, match=why):
            device_named(name)
    assert device_named("cpu").type == "cpu"
    assert device_named().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageError, match="sees no GPU" if not torch.cuda.is_available() else "counted from 0"):
        device_named("cuda:99")
