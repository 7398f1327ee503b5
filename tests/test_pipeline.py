"""The straight line on disk; what goes wrong in it leaves one sentence and nothing half-made."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from hubquant import pipeline
from hubquant.artifact import Report, file_sha256
from hubquant.calibrate.source import with_texts
from hubquant.errors import BadModel, DiskFull, HubquantError, UsageError
from hubquant.hub.snapshot import fingerprint_folder
from hubquant.pipeline import source
from hubquant.progress import silent
from hubquant.recipe import Calibration, EvaluationPlan, Recipe

SMALL = Recipe(
    variants=("gptq-int4-g128", "awq-int4-g128", "gguf-q8_0", "gguf-q4_k_m"),
    calibration=Calibration(windows=4, window=64),
    evaluation=EvaluationPlan(protocols=("gptq-128", "llamacpp-128"), max_tokens=1024),
)

QUICK = SMALL.model_copy(update={"variants": ("gguf-q8_0",)})


def make(model: Path, out: Path, recipe: Recipe = SMALL) -> Report:
    return pipeline.quantize(model, out, with_texts(recipe), fingerprint_folder(model), silent)


@pytest.fixture(scope="module")
def made(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("made") / "out"
    make(bundled, out)
    return out, pipeline.evaluate(out, bundled, silent)


def test_every_variant_is_made_and_measured_under_every_protocol(made: tuple[Path, Report]) -> None:
    out, report = made
    assert [a.variant for a in report.artifacts] == list(SMALL.variants)
    assert [(e.protocol.name, e.variant) for e in report.evaluations] == [
        (p, v) for p in SMALL.evaluation.protocols for v in SMALL.variants
    ]
    assert all(report.passed(v) for v in SMALL.variants)
    assert Report.read(out) == report
    for artifact in report.artifacts:
        for name, sha256 in artifact.files.items():
            assert file_sha256(out / artifact.folder / name) == sha256
    assert not list(out.rglob("*.part"))


def test_more_bits_lose_less(made: tuple[Path, Report]) -> None:
    _, report = made
    q8, q4 = report.evaluation("gguf-q8_0"), report.evaluation("gguf-q4_k_m")
    assert q8 and q4 and q8.mean_kl < q4.mean_kl / 10


def test_what_is_read_back_is_what_from_pretrained_computes(made: tuple[Path, Report], bundled: Path) -> None:
    out, report = made
    tokens = torch.randint(0, 2048, (1, 32), generator=torch.Generator().manual_seed(0))
    for artifact in report.artifacts:
        options = {"gguf_file": artifact.main_file} if artifact.main_file.endswith("gguf") else {}
        loaded = AutoModelForCausalLM.from_pretrained(out / artifact.folder, dtype=torch.float32, **options)
        dense = AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32)
        decoded = source(out, artifact)
        with torch.no_grad():
            for name in decoded.names():
                dense.get_parameter(name).copy_(decoded.tensor(name))
            # the same products in another order: roundings of 2^-24 over four layers of sums of up to 768 terms
            torch.testing.assert_close(loaded(tokens).logits, dense(tokens).logits, rtol=0, atol=1e-3)


def test_the_same_inputs_give_the_same_bytes(made: tuple[Path, Report], bundled: Path, tmp_path: Path) -> None:
    again = make(bundled, tmp_path / "out")
    assert [a.files for a in again.artifacts] == [a.files for a in made[1].artifacts]


def test_an_interrupted_output_folder_is_made_anew(made: tuple[Path, Report], bundled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made[0], out)
    (out / "hubquant.json").unlink()
    (out / "gguf" / "left.gguf.part").write_text("half")
    make(bundled, out, QUICK)
    assert sorted(p.name for p in out.iterdir()) == ["gguf", "hubquant.json", "progress.json"]
    assert sorted(p.name for p in (out / "gguf").iterdir()) == ["imatrix.gguf", "model-Q8_0.gguf"]


def test_a_folder_of_someone_else_is_left_alone(bundled: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not made by hubquant"):
        make(bundled, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def broken(bundled: Path, tmp_path: Path, change: Callable[[Path, dict[str, Tensor]], None]) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(bundled, folder)
    tensors = load_file(folder / "model.safetensors")
    change(folder, tensors)
    if (folder / "model.safetensors").exists():
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def poison(folder: Path, tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.3.mlp.down_proj.weight"][0, 0] = float("nan")


def no_tokenizer(folder: Path, tensors: dict[str, Tensor]) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def pickled(folder: Path, tensors: dict[str, Tensor]) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def unknown(folder: Path, tensors: dict[str, Tensor]) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "brand-new"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(poison, "NaN"), (no_tokenizer, "tokenizer"), (pickled, "pickle"), (unknown, "brand-new")],
)
def test_bad_models_end_in_a_sentence(
    bundled: Path, tmp_path: Path, change: Callable[[Path, dict[str, Tensor]], None], sentence: str
) -> None:
    model = broken(bundled, tmp_path, change)
    out = tmp_path / "out"
    with pytest.raises(BadModel, match=sentence):
        make(model, out, QUICK)
    assert not (out / "hubquant.json").exists(), "nothing that could be taken for a result"
    assert not list(out.rglob("*.gguf")) and not list(out.rglob("*.safetensors"))


def test_a_full_disk_is_said_so(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hubquant.formats.shards import ShardWriter

    def full(self: ShardWriter, name: str, tensor: Tensor) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardWriter, "add", full)
    with pytest.raises(DiskFull, match="is full"):
        make(bundled, tmp_path / "out")


def test_what_one_format_cannot_hold_does_not_stop_the_others(bundled: Path, tmp_path: Path) -> None:
    def gemma(folder: Path, tensors: dict[str, Tensor]) -> None:
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "gemma", "architectures": ["GemmaForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(config))

    two = SMALL.model_copy(update={"variants": ("awq-int4-g128", "gguf-q8_0")})
    report = make(broken(bundled, tmp_path, gemma), tmp_path / "out", two)
    assert [a.variant for a in report.artifacts] == ["awq-int4-g128"]
    assert len(report.notes) == 1 and "cannot be written as GGUF" in report.notes[0]


def test_a_variant_given_up_in_the_middle_does_not_stop_the_others(bundled: Path, tmp_path: Path) -> None:
    def large(folder: Path, tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = 1e5

    variants = ("gguf-q8_0", "gguf-bf16", "gguf-auto@4.5bpw", "gptq-int4-g128")
    model, out = broken(bundled, tmp_path, large), tmp_path / "out"
    report = make(model, out, SMALL.model_copy(update={"variants": variants}))
    assert [a.variant for a in report.artifacts] == ["gguf-bf16", "gptq-int4-g128"]  # GPTQ clips
    for name, note in zip(("gguf-q8_0", "gguf-auto@4.5bpw"), report.notes, strict=True):
        assert note.startswith(f"{name} not made: tensor model.layers.2.mlp.up_proj.weight: a weight of magnitude 99840")
    assert sorted(p.name for p in (out / "gguf").iterdir()) == ["imatrix.gguf", report.artifact("gguf-bf16").main_file]
    assert not list(out.rglob("*.part"))
    with pytest.raises(BadModel, match=r"^tensor model\.layers\.2\.mlp\.up_proj\.weight: a weight of magnitude"):
        make(model, out, QUICK)


def test_activations_that_overflow_are_left_out_and_said(bundled: Path, tmp_path: Path) -> None:
    """The input of a layer's down_proj has values of 1e20, whose squares are no float32."""

    def huge(folder: Path, tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][0] = 1e20

    report = make(broken(bundled, tmp_path, huge), tmp_path / "out", SMALL.model_copy(update={"variants": ("gptq-int4-g128",)}))
    assert report.dropped_rows == 4 * 64
    assert report.notes == ("256 rows of activations overflowed or were not finite; they are not in the calibration",)
    [record] = [t for t in report.artifacts[0].tensors if t.name == "model.layers.1.mlp.down_proj.weight"]
    assert record.output_error is None and record.note == "rounded to nearest: no calibration token reached it, 96 are needed"


@pytest.mark.parametrize(("text", "sentence"), [("", "is empty"), ("A few words.", "fewer than one window of 64")])
def test_too_short_a_text_is_said_before_anything_is_touched(bundled: Path, tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "hubquant.json").write_text("of an earlier pass")
    short = QUICK.model_copy(update={"calibration": Calibration(source=str(tmp_path / "t.txt"), windows=1, window=64)})
    with pytest.raises(UsageError, match=sentence):
        make(bundled, tmp_path / "out", short)
    assert (tmp_path / "out" / "hubquant.json").read_text() == "of an earlier pass"


def test_evaluating_what_is_no_output_folder(tmp_path: Path, bundled: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no hubquant\.json; is it an output folder"):
        pipeline.evaluate(tmp_path, bundled, silent)


def test_errors_have_exit_codes() -> None:
    assert HubquantError("x").exit_code == 1 and UsageError("x").exit_code == 2
