"""Scales asked again: what is computed from them is what the files say, it loses less, and nothing but scales changes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hubquant import pipeline, refine
from hubquant.artifact import Refinement, Report, file_sha256
from hubquant.base import open_base
from hubquant.calibrate.source import with_texts
from hubquant.errors import BadModel, UsageError
from hubquant.formats.gguf.header import GgufHeader
from hubquant.formats.gguf.scales import GgufScales
from hubquant.formats.packedscales import PackedScales
from hubquant.hub.snapshot import fingerprint_folder
from hubquant.progress import silent
from hubquant.quantize.ggml import GGML_TYPES
from hubquant.quantize.scales import SCALES
from hubquant.recipe import Calibration, EvaluationPlan, Recipe

pytestmark = pytest.mark.timeout(900)  # two passes and the learning of two variants lie before its first test
VARIANTS = ("gptq-int3-g64-asym-actorder", "gguf-q4_k_m", "gguf-bf16")
PASS = Recipe(
    variants=VARIANTS,
    calibration=Calibration(windows=16, window=256),
    evaluation=EvaluationPlan(protocols=("gptq-128",), max_tokens=2048),
)
REFINED = PASS.model_copy(update={"refine": 5})
# the head of this model is its embedding once more, so that the first cannot be made, neither before nor after a kill
SMALL = Recipe(
    variants=("gptq-int4-g128-head", "gguf-q4_0", "gguf-bf16", "gptq-int2-g128"),
    calibration=Calibration(windows=8, window=64),
    refine=2,
)
REFINABLE = VARIANTS[:2]


def make(model: Path, out: Path, recipe: Recipe) -> Report:
    return pipeline.quantize(model, out, with_texts(recipe), fingerprint_folder(model), silent)


def files(out: Path) -> dict[str, str]:
    return {str(p.relative_to(out)): file_sha256(p) for p in out.rglob("*") if p.suffix in (".safetensors", ".gguf")}


@pytest.fixture(scope="module")
def plain(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("plain") / "out"
    make(bundled, out, PASS)
    return out, pipeline.evaluate(out, bundled, silent)


@pytest.fixture(scope="module")
def refined(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("refined") / "out"
    make(bundled, out, REFINED)
    return out, pipeline.evaluate(out, bundled, silent)


@pytest.fixture(scope="module")
def undisturbed(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    make(bundled, out, SMALL)
    return files(out)


@pytest.mark.parametrize("name", REFINABLE)
def test_it_loses_less_on_a_text_it_has_not_seen(name: str, plain: tuple[Path, Report], refined: tuple[Path, Report]) -> None:
    before, after = plain[1].evaluation(name), refined[1].evaluation(name)
    found = refined[1].artifact(name).refinement
    assert found is not None and found.steps == 5
    assert before is not None and after is not None
    assert found.kept and after.mean_kl < before.mean_kl


def test_what_has_no_scales_stays_and_is_noted(plain: tuple[Path, Report], refined: tuple[Path, Report]) -> None:
    name = "gguf-bf16"
    assert refined[1].artifact(name).refinement is None
    assert refined[1].artifact(name).files[refined[1].artifact(name).main_file] == file_sha256(
        plain[0] / "gguf" / plain[1].artifact(name).main_file
    )
    assert f"{name} not refined: it has no scales" in refined[1].notes


def test_files_are_those_of_the_report(refined: tuple[Path, Report]) -> None:
    out, report = refined
    for artifact in report.artifacts:
        for name, sha256 in artifact.files.items():
            assert file_sha256(out / artifact.folder / name) == sha256
    assert not list(out.rglob("*.part"))


def test_of_packed_folders_only_scales_change(plain: tuple[Path, Report], refined: tuple[Path, Report]) -> None:
    before, after = (load_file(out / VARIANTS[0] / "model.safetensors") for out, _ in (plain, refined))
    changed = {tensor for tensor in before if not torch.equal(before[tensor], after[tensor])}
    assert changed and all(tensor.endswith(".scales") for tensor in changed)


def test_of_gguf_files_only_scales_change(plain: tuple[Path, Report], refined: tuple[Path, Report]) -> None:
    file = plain[1].artifact("gguf-q4_k_m").main_file
    before, after = (out / "gguf" / file for out, _ in (plain, refined))
    header = GgufHeader.read(before)
    places = {n: t for n, t in header.tensors.items() if t.kind.name in SCALES and len(t.shape) > 1 and n.startswith("blk.")}
    differing = np.flatnonzero(np.frombuffer(before.read_bytes(), np.uint8) != np.frombuffer(after.read_bytes(), np.uint8))
    allowed = np.concatenate([_scale_bytes(stored.offset, stored.size_bytes, stored.kind.name) for stored in places.values()])
    assert len(differing) and np.isin(differing, allowed).all()


def _scale_bytes(offset: int, size: int, kind: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    starts = np.arange(offset, offset + size, GGML_TYPES[kind].type_size)
    return np.concatenate([starts + at + byte for at in SCALES[kind] for byte in (0, 1)])


@pytest.mark.parametrize("name", REFINABLE)
def test_weights_from_scales_are_those_of_the_bytes(name: str, plain: tuple[Path, Report]) -> None:
    out, report = plain
    artifact = report.artifact(name)
    scales = refine.open_scales(out, artifact, torch.device("cpu"))
    source = pipeline.source(out, artifact)
    assert isinstance(scales, GgufScales if name.startswith("gguf") else PackedScales)
    initial = scales.scales
    # minima are subtracted: with their sign turned the parts add up to the magnitudes that are rounded
    turned = {n: s * torch.tensor([1.0, -1.0])[: len(s), None, None] if s.ndim == 3 else s for n, s in initial.items()}
    for tensor in source.names():
        scales.scales = initial
        found = scales.tensor(tensor).float()
        scales.scales = turned
        # up to three roundings of half a unit in the decoder's products and difference, two here
        assert bool(((found - source.tensor(tensor).float()).abs() <= 5 * 2.0**-24 * scales.tensor(tensor).abs()).all()), tensor


def test_gradients_are_those_of_differences(plain: tuple[Path, Report], bundled: Path) -> None:
    out, report = plain
    source = refine.open_scales(out, report.artifact("gguf-q4_k_m"), torch.device("cpu"))
    decoder = open_base(bundled).decoder(source, torch.float64)
    hidden = decoder.embed(torch.arange(16)[None]).double()
    name = "blk.0.attn_q.weight"  # whose rows are in another order in the file
    start = source.scales[name].double()
    change = torch.zeros_like(start, requires_grad=True)

    def loss(change: torch.Tensor) -> torch.Tensor:
        source.scales[name] = start * (1 + change)
        return decoder.run_with_gradients(0, [0], hidden)[0].square().sum()

    (gradient,) = torch.autograd.grad(loss(change), change)
    direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 4e-3
    slope = float(loss(step * direction) - loss(-step * direction)) / (2 * step)
    # weights are rounded to float32, 6e-8 of them against changes of 4e-3; the third derivative counts step² = 1.6e-5 times
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-3)


def test_scales_that_are_no_better_are_not_kept(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "LEARNING_RATE", 10.0)
    one = SMALL.model_copy(update={"variants": ("gguf-q4_0",)})
    plain, worse = make(bundled, tmp_path / "plain", one.model_copy(update={"refine": 0})), make(bundled, tmp_path / "worse", one)
    found = worse.artifacts[0].refinement
    assert found is not None and not found.kept
    assert worse.artifacts[0].files == plain.artifacts[0].files


@pytest.mark.parametrize("moment", ["learning", "writing", "written"])
def test_killed_it_goes_on_and_makes_the_same_bytes(
    moment: str, bundled: Path, tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the second variant's scales are learned, written, or were written but not noted."""

    class Killed(BaseException):
        pass

    learned: list[str] = []
    base, learn, write = fingerprint_folder(bundled), refine.refine, PackedScales.write

    def counting(*args: Any) -> Any:
        learned.append("once")
        return learn(*args)

    def dying(self: Any, scales: dict[str, torch.Tensor]) -> list[Path]:
        last, names = len(learned) == 2, list(scales)
        kept = names[: len(names) // 2] if last and moment == "writing" else names
        paths = write(self, {name: scales[name] for name in kept})
        if last:
            raise Killed
        return paths

    def told(stage: str, done: int, total: int) -> None:
        if moment == "learning" and (stage, done) == ("refine", 5):
            raise Killed

    monkeypatch.setattr(refine, "refine", counting)
    with monkeypatch.context() as killing, pytest.raises(Killed):
        if moment != "learning":
            killing.setattr(PackedScales, "write", dying)
        pipeline.quantize(bundled, tmp_path / "out", with_texts(SMALL), base, told)
    pipeline.quantize(bundled, tmp_path / "out", with_texts(SMALL), base, silent)
    assert len(learned) == (3 if moment == "learning" else 2), "what was learned is not learned again"
    assert files(tmp_path / "out") == undisturbed


def test_an_expert_s_scales(mixture_of_experts: Callable[[str], Path], tmp_path: Path) -> None:
    model = mixture_of_experts("qwen3_moe")
    variants = ("gguf-q4_0", "gptq-int4-g32")
    make(model, tmp_path / "plain", SMALL.model_copy(update={"variants": variants, "refine": 0}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Refinement, "kept", True)
        report = make(model, tmp_path / "out", SMALL.model_copy(update={"variants": variants}))
    for artifact in report.artifacts:
        before, after = (refine.open_scales(tmp_path / f, artifact, torch.device("cpu")).scales for f in ("plain", "out"))
        experts = [name for name in before if "exps" in name or ".experts." in name]
        assert experts and all(not torch.equal(before[name], after[name]) for name in experts if "exps" in name)
        assert any(not torch.equal(before[name], after[name]) for name in experts)


def test_what_is_not_finite_is_not_learned_from_and_never_kept(bundled: Path, plain: tuple[Path, Report]) -> None:
    out, report = plain
    opened = open_base(bundled)
    source = refine.open_scales(out, report.artifact("gguf-q4_k_m"), torch.device("cpu"))
    base, own = opened.decoder(), opened.decoder(source)
    tokens = torch.arange(9 * 16).view(9, 16)
    states = base.embed(tokens)  # those of another model than the base, which is no matter here
    states[3, 2, 1] = torch.inf
    _, found = refine.refine(base, states, own, source, tokens, 1, lambda done, steps: None)
    assert all(map(math.isfinite, found.held_out_kl))
    states[4:] = torch.nan
    with pytest.raises(BadModel, match="of 9 calibration windows 3 are finite"):
        refine.refine(base, states, own, source, tokens, 1, lambda done, steps: None)


def test_windows_that_share_tokens_are_refused(bundled: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("A short text. " * 100)
    recipe = SMALL.model_copy(update={"calibration": Calibration(source=str(text), windows=8, window=128)})
    with pytest.raises(UsageError, match="windows must not share tokens"):
        make(bundled, tmp_path / "out", recipe)


def test_too_few_windows_to_hold_one_out() -> None:
    with pytest.raises(UsageError, match="at least 8 calibration windows, not 4"):
        Recipe(calibration=Calibration(windows=4), refine=8)
