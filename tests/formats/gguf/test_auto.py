"""A mixture by sensitivity: the budget holds for the whole file, and other tools know its name and types."""

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from torch import Tensor

from hubquant.artifact import Base, Report
from hubquant.errors import BadModel, UsageError
from hubquant.formats.gguf.auto import LADDER, candidate_types
from hubquant.formats.gguf.filetypes import MIXTURES
from hubquant.formats.gguf.reader import GgufSource
from hubquant.formats.sensitivity import Sensitivity
from hubquant.pipeline import quantize
from hubquant.quantize.ggml import GGML_TYPES
from hubquant.recipe import Calibration, Recipe, variant


def made(model: Path, out: Path, *names: str) -> Report:
    recipe = Recipe(variants=names, calibration=Calibration(windows=2, window=128))
    return quantize(model, out, recipe, Base(repo_id="demo-org/tiny", revision="", fingerprint=""), lambda *_: None)


@pytest.fixture(scope="module")
def report_and_folder(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    out = tmp_path_factory.mktemp("auto") / "out"
    return made(demo_folder, out, "gguf-auto@5.2bpw"), out


def test_the_budget_is_kept_and_used(report_and_folder: tuple[Report, Path]) -> None:
    report, out = report_and_folder
    artifact = report.artifact("gguf-auto@5.2bpw")
    assert 5.15 < artifact.bits_per_weight <= 5.2
    assert artifact.size_bytes == (out / "gguf" / artifact.main_file).stat().st_size


def test_the_file_is_named_and_typed_for_other_tools(report_and_folder: tuple[Report, Path]) -> None:
    report, out = report_and_folder
    artifact = report.artifact("gguf-auto@5.2bpw")
    assert artifact.main_file == "tiny-5.2BPW-Q4_K_M_AUTO.gguf"
    reader = gguf.GGUFReader(out / "gguf" / artifact.main_file)
    types = [t.tensor_type.name for t in reader.tensors if len(t.shape) > 1]
    file_type = reader.get_field("general.file_type")
    assert file_type is not None
    called = next(m for m in MIXTURES.values() if m.file_type == file_type.contents())
    assert called.base == max(set(types), key=types.count)
    assert {record.type for record in artifact.tensors} <= {*LADDER, "F32"}
    # nothing of the trials is left
    assert sorted(p.name for p in (out / "gguf").iterdir()) == ["imatrix.gguf", artifact.main_file]


def test_every_tensor_holds_what_its_record_says(report_and_folder: tuple[Report, Path], demo_folder: Path) -> None:
    """The bytes are those of the type, of the right tensor: decoded they differ from the base by the recorded error."""
    report, out = report_and_folder
    artifact = report.artifact("gguf-auto@5.2bpw")
    stored, whole = GgufSource(out / "gguf" / artifact.main_file), _base(demo_folder)
    for record in artifact.tensors:
        before, after = whole[record.name], stored.tensor(record.name)
        relative = float((after - before).square().sum() / before.square().sum())
        # one bit more takes three quarters of the error off; four bits leave some 0.6 % of the energy of Gaussian weights
        assert relative < (1e-6 if record.type == "F32" else 16 * 4.0 ** -int(GGML_TYPES[record.type].bits_per_weight))


def _base(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {name: tensor.to(torch.float32) for name, tensor in load_file(folder / "model.safetensors").items()}


def test_a_budget_that_the_model_cannot_keep_is_declined_and_the_others_are_made(demo_folder: Path, tmp_path: Path) -> None:
    report = made(demo_folder, tmp_path / "out", "gguf-auto@1.8bpw", "gguf-q8_0")
    assert [a.variant for a in report.artifacts] == ["gguf-q8_0"]
    assert "gguf-auto@1.8bpw not made" in report.notes[0] and "takes at least" in report.notes[0]
    assert not list((tmp_path / "out" / "gguf").glob("*AUTO*"))


def test_what_experts_add_is_the_same_however_many_fit_at_a_time(
    mixture_of_experts: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[tuple[str, str], float]] = []
    shares = Sensitivity.shares

    def noted(self: Sensitivity) -> dict[tuple[str, str], float]:
        found.append(shares(self))
        return found[-1]

    monkeypatch.setattr(Sensitivity, "shares", noted)
    model = mixture_of_experts("qwen3_moe")
    made(model, tmp_path / "whole", "gguf-auto@8.5bpw")
    monkeypatch.setattr("hubquant.parts.STATISTICS_BYTES", 3 * 4 * (64**2 + 32**2))
    made(model, tmp_path / "parts", "gguf-auto@8.5bpw")
    # the same numbers summed in the same order
    assert found[0] == found[1] and ("model.layers.1.", "mlp") in found[0]


def test_a_size_is_a_budget_too(demo_folder: Path, tmp_path: Path) -> None:
    report = made(demo_folder, tmp_path / "out", "gguf-auto@2.4MB")
    artifact = report.artifacts[0]
    assert 2_380_000 < artifact.size_bytes <= 2_400_000
    assert artifact.main_file == "tiny-2.4MB-Q4_K_M_AUTO.gguf" and report.variant("gguf-auto@2.4MB").bits == 5
    with pytest.raises(BadModel, match=r"gguf-auto@50MB: nothing has 1.* bits per weight; ask for 1.7 to 16"):
        made(demo_folder, tmp_path / "other", "gguf-auto@50MB")


def test_candidates_lie_around_the_budget() -> None:
    assert candidate_types(4.5) == ("Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
    assert candidate_types(8.5) == ("Q5_K", "Q6_K", "Q8_0")
    assert candidate_types(1.7)[0] == "IQ1_M"


def test_names_of_budgets() -> None:
    assert variant("gguf-auto@4.50bpw") == variant("gguf-auto@4.5bpw")
    assert variant("gguf-auto@4.5bpw").bits == 4 and variant("gguf-auto@3bpw").mixture == "3BPW-IQ3_XXS_AUTO"
    for name in ("gguf-auto", "gguf-auto@bpw", "gguf-auto@-4bpw", "gguf-auto@4.5", "gguf-auto@0.5bpw", "gguf-auto@99bpw"):
        with pytest.raises(UsageError, match=name):
            variant(name)
