"""GPTQ and AWQ folders of mixtures of experts: published names, what each expert got, and nothing lost on the way back."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hubquant import pipeline
from hubquant.artifact import Report
from hubquant.calibrate.source import with_texts
from hubquant.formats.packedsource import PackedSource
from hubquant.hub.snapshot import fingerprint_folder
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.decoder import Decoder, read_config
from hubquant.progress import silent
from hubquant.recipe import Calibration, EvaluationPlan, Recipe

Models = Callable[[str], Path]


BOTH = ("gptq-int4-g128", "awq-int4-g128")


def make(
    model: Path, out: Path, windows: int = 2, window: int = 64, all_experts: bool = False, variants: tuple[str, ...] = BOTH[:1]
) -> Report:
    recipe = Recipe(
        variants=variants,
        calibration=Calibration(windows=windows, window=window, all_experts=all_experts),
        evaluation=EvaluationPlan(protocols=("gptq-128",), max_tokens=256),
    )
    return pipeline.quantize(model, out, with_texts(recipe), fingerprint_folder(model), silent)


@pytest.mark.parametrize(
    ("family", "linear", "router"),
    [
        ("mixtral", "block_sparse_moe.experts.3.w2", "block_sparse_moe.gate"),
        ("deepseek_v3", "mlp.experts.7.down_proj", "mlp.gate"),
        ("gpt_oss", "mlp.experts.3.down_proj", "mlp.router"),
    ],
)
def test_round_trip(family: str, linear: str, router: str, mixture_of_experts: Models, tmp_path: Path) -> None:
    model = mixture_of_experts(family)
    report = make(model, tmp_path / "out", variants=BOTH if family == "mixtral" else BOTH[1:])
    for artifact in report.artifacts:
        folder = tmp_path / "out" / artifact.folder
        stored = load_file(folder / "model.safetensors").keys()
        assert {f"model.layers.1.{linear}.{s}" for s in ("qweight", "qzeros", "scales")} <= stored
        assert f"model.layers.1.{router}.weight" in stored and f"model.layers.1.{router}.qweight" not in stored
        records = {r.name: r for r in artifact.tensors}
        assert records[f"model.layers.1.{router}.weight"].note == "kept in 16 bit: it chooses among the experts"
        assert records[f"model.layers.1.{linear}.weight"].type == ("int4-g64" if family == "gpt_oss" else "int4-g32")
        block = json.loads((folder / "config.json").read_text())["quantization_config"]
        kept = [k[2:] for k in block.get("dynamic", {})] + [f"{re.escape(n)}$" for n in block.get("modules_to_not_convert", ())]
        assert any(re.match(p, f"model.layers.1.{router}") for p in kept), "a reader must know that it is not packed"
        # every weight that the model needs comes back, close to what it was
        base, back = Decoder(read_config(model), Checkpoint(model)), Decoder(read_config(model), PackedSource(folder))
        for name in base.shapes():
            assert back.source.tensor(name).shape == base.source.tensor(name).shape, name
    if family == "deepseek_v3":
        bias = "model.layers.1.mlp.gate.e_score_correction_bias"
        assert torch.equal(PackedSource(folder).tensor(bias), Checkpoint(model).tensor(bias)), (
            "the choice of experts is not rounded"
        )
    measured = pipeline.evaluate(tmp_path / "out", model, silent)
    # random weights of 4 bits: far from equal, farther from unrelated (an expert in another's place gives about 1)
    assert all(e.mean_kl < 0.2 for e in measured.evaluations), [e.mean_kl for e in measured.evaluations]


def test_every_form_of_checkpoint_gives_the_same_bytes(mixture_of_experts: Models, tmp_path: Path) -> None:
    model, fused = mixture_of_experts("mixtral"), tmp_path / "fused"
    fused.mkdir()
    for file in (f for f in model.iterdir() if f.suffix != ".safetensors"):
        (fused / file.name).write_bytes(file.read_bytes())
    state = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    save_file({n: t.contiguous() for n, t in state.items()}, fused / "model.safetensors", {"format": "pt"})
    separate, joined = make(model, tmp_path / "a"), make(fused, tmp_path / "b")
    assert [a.files for a in separate.artifacts] == [a.files for a in joined.artifacts]


def test_parts_give_the_same_tensors(mixture_of_experts: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many experts' sums fit at a time."""
    make(mixture_of_experts("qwen3_moe"), tmp_path / "whole")
    monkeypatch.setattr("hubquant.parts.STATISTICS_BYTES", 3 * 4 * (64**2 + 32**2))
    report = make(mixture_of_experts("qwen3_moe"), tmp_path / "parts")
    for artifact in report.artifacts:
        whole, parts = (load_file(tmp_path / o / artifact.folder / "model.safetensors") for o in ("whole", "parts"))
        assert whole.keys() == parts.keys() and all(torch.equal(whole[n], parts[n]) for n in whole)


def test_experts_that_saw_too_few_tokens_are_rounded_and_recorded(mixture_of_experts: Models, tmp_path: Path) -> None:
    few = make(mixture_of_experts("qwen3_moe"), tmp_path / "few", windows=1, window=24)
    all_ = make(mixture_of_experts("qwen3_moe"), tmp_path / "all", windows=1, window=24, all_experts=True)
    starved = [r for r in few.artifacts[0].tensors if "rounded to nearest" in r.note]
    assert starved and all(".experts." in r.name for r in starved)
    assert all(
        re.search(r"(\d+|no) calibration tokens? reached it, \d+ are needed$", r.note) and r.output_error is None for r in starved
    )
    gate = next(r for r in starved if r.name.endswith("gate_proj.weight"))
    assert gate.note.endswith(", 8 are needed"), "one token to eight of 64 channels"
    assert not any("rounded to nearest" in r.note for r in all_.artifacts[0].tensors)
    types = [{r.name: r.type for r in report.artifacts[0].tensors} for report in (few, all_)]
    assert types[0] == types[1], "what is packed does not depend on who sees which tokens"
