"""Bits by sensitivity for GPTQ: the budget is kept, what vLLM joins is alike, and what is chosen is what is read back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from hubquant.artifact import Artifact, Base, Report
from hubquant.errors import BadModel, UsageError
from hubquant.formats.packedsource import PackedSource
from hubquant.pipeline import evaluate, quantize
from hubquant.recipe import Calibration, EvaluationPlan, Recipe, variant

BUDGET = "gptq-auto@4.4bpw"
JOINED = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})


def made(model: Path, out: Path, *names: str, **options: object) -> Report:
    recipe = Recipe(
        variants=names, calibration=Calibration(windows=2, window=128), evaluation=EvaluationPlan(max_tokens=1024), **options
    )
    return quantize(model, out, recipe, Base(repo_id="demo-org/tiny", revision="", fingerprint=""), lambda *_: None)


@pytest.fixture(scope="module")
def report_and_folder(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    out = tmp_path_factory.mktemp("auto") / "out"
    return made(bundled, out, BUDGET, *(f"gptq-int{b}-g128" for b in (2, 3, 4, 8))), out


def packed_bits(folder: Path) -> float:
    """Bits per packed weight, scales, zeros and g_idx included."""
    taken = weights = 0
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            stem, _, suffix = name.rpartition(".")
            tensor = file.get_tensor(name)
            if suffix in ("qweight", "qzeros", "scales", "g_idx"):
                taken += 8 * tensor.nbytes
            if suffix == "qweight":
                weights += tensor.shape[1] * file.get_slice(f"{stem}.g_idx").get_shape()[0]
    return taken / weights


def widths(artifact: Artifact) -> dict[str, str]:
    return {record.name: record.type for record in artifact.tensors}


def test_the_budget_is_kept_and_used(report_and_folder: tuple[Report, Path]) -> None:
    report, out = report_and_folder
    assert 4.2 < packed_bits(out / BUDGET) <= 4.4
    assert report.variant(BUDGET).bits == 4 and not list(out.glob("**/*.part")) and not (out / BUDGET / "trials").exists()
    assert len(set(widths(report.artifact(BUDGET)).values())) > 1


def test_linears_that_are_joined_have_equal_bits(report_and_folder: tuple[Report, Path]) -> None:
    found = widths(report_and_folder[0].artifact(BUDGET))
    for name, kind in found.items():
        owner, linear = name.removesuffix(".weight").rsplit(".", 1)
        for members in JOINED:
            if linear in members:
                assert {found[f"{owner}.{member}.weight"] for member in members} == {kind}


def test_every_linear_is_read_back_at_its_width(report_and_folder: tuple[Report, Path]) -> None:
    """Its error is that of its own record: no bytes were mixed up."""
    report, out = report_and_folder
    chosen, source = report.artifact(BUDGET), PackedSource(out / BUDGET)
    uniform = {bits: PackedSource(out / f"gptq-int{bits}-g128") for bits in (2, 3, 4, 8)}
    by_width = {record.name: int(record.type.removeprefix("int").partition("-")[0]) for record in chosen.tensors}
    for name, bits in by_width.items():
        weight = source.tensor(name)
        # one fold for all widths: columns may be scaled otherwise than in the uniform model, so numbers of levels are compared
        levels = max(int(row.unique().numel()) for row in weight[:, :128])
        assert levels <= 2**bits < 4 * max(int(row.unique().numel()) for row in uniform[bits].tensor(name)[:, :128])
    block = json.loads((out / BUDGET / "config.json").read_text())["quantization_config"]
    assert block["bits"] == min(by_width.values()) and block["dynamic"]


def test_a_size_is_a_budget_for_all_weight_files(bundled: Path, report_and_folder: tuple[Report, Path], tmp_path: Path) -> None:
    uniform = report_and_folder[0].artifact("gptq-int4-g128").size_bytes
    size = f"{(uniform + 50_000) / 1e6:.2f}MB"
    report = made(bundled, tmp_path / "out", f"gptq-auto@{size}")
    artifact = report.artifacts[0]
    assert uniform < artifact.size_bytes <= variant(artifact.variant).size_bytes
    assert report.variant(artifact.variant).bits in (3, 4)
    assert report.variant(artifact.variant).repo_suffix == f"GPTQ-Auto-{float(size[:-2]):g}MB"
    assert evaluate(tmp_path / "out", bundled, lambda *_: None).passed(artifact.variant)


def test_a_budget_that_the_model_cannot_keep_is_declined_before_the_pass(bundled: Path, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"the budget of gptq-auto@2.1bpw: this model takes at least 2\.\d+ bits per packed weight"):
        made(bundled, tmp_path / "bits", "gptq-auto@2.1bpw")
    with pytest.raises(BadModel, match=r"the budget of gptq-auto@1MB: this model takes at least \d\.\d MB"):
        made(bundled, tmp_path / "size", "gptq-auto@1MB")
    with pytest.raises(BadModel, match="leave nothing to overrides"):
        made(bundled, tmp_path / "both", "gptq-auto@4.5bpw", dynamic=("x=int8-g64",))
    with pytest.raises(UsageError, match="ask for 2 to 16"):
        variant("gptq-auto@1.5bpw")


def test_all_experts_of_a_list_have_equal_bits(mixture_of_experts: Callable[[str], Path], tmp_path: Path) -> None:
    report = made(mixture_of_experts("qwen3_moe"), tmp_path / "out", "gptq-auto@4.9bpw")
    lists: dict[str, set[str]] = {}
    for name, kind in widths(report.artifacts[0]).items():
        if ".experts." in name:
            lists.setdefault(name.partition(".experts.")[0], set()).add(kind)
    assert len(lists) == 2 and all(len(kinds) == 1 for kinds in lists.values())
    block = json.loads((tmp_path / "out" / "gptq-auto@4.9bpw" / "config.json").read_text())["quantization_config"]
    assert not any(".experts.0" in pattern.replace("\\", "") for pattern in block.get("dynamic", {}))
