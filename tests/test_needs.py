"""What is said before a pass is what happens in it, and what cannot be is refused before it begins."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from hubquant import memory, needs, pipeline
from hubquant.base import open_base
from hubquant.calibrate.source import with_texts
from hubquant.errors import DiskFull, MemoryShort
from hubquant.hub.snapshot import fingerprint_folder
from hubquant.progress import silent
from hubquant.recipe import Calibration, Recipe
from tests.benchmarks.memory import measured

HUBQUANT = [sys.executable, "-m", "hubquant"]
WITHIN = 0.2


def wide(bundled: Path, folder: Path) -> Path:
    """A vocabulary of 120,000 before one small layer: other tensors decide than in a model of many layers."""
    config = AutoConfig.for_model(
        "llama", vocab_size=120_000, hidden_size=512, intermediate_size=768, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=8, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    folder.mkdir()
    config.save_pretrained(folder)
    for file in bundled.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    random = torch.Generator().manual_seed(0)
    tensors = {n: (torch.randn(s, generator=random) * 0.02 + (len(s) == 1)).bfloat16() for n, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["bundled", "wide", "refined"])
def test_memory_and_disk_are_within_a_fifth_of_what_is_said(kind: str, bundled: Path, tmp_path: Path) -> None:
    model = bundled if kind == "bundled" else wide(bundled, tmp_path / "m")
    variants = ["gptq-int4-g128", *(["gguf-q4_k_m"] if kind == "bundled" else [])]
    asked = [part for name in variants for part in ("-v", name)]
    asked += ["--window", "64", *(["--windows", "8", "--refine", "1"] if kind == "refined" else ["--windows", "4"])]
    out = tmp_path / "out"
    said = json.loads(subprocess.check_output([*HUBQUANT, "plan", str(model), *asked, "--json"]))["needs"]
    resident, disk, _ = measured(["quantize", str(model), "-o", str(out), *asked, "--no-evaluate"], out)
    assert abs(said["memory_bytes"] / resident - 1) < WITHIN, (said, resident)
    assert abs(said["disk_bytes"] / disk - 1) < WITHIN, (said, disk)


def test_what_reads_the_same_is_found_without_weights(bundled: Path) -> None:
    shape = needs.shape_of(open_base(bundled).config)
    assert shape.counts == (4,) and shape.parameters == 3_672_320
    readings = [(reading.width, reading.rows) for reading in shape.layers[0].readings]
    assert readings == [(256, (256, 128, 128)), (256, (256,)), (256, (768, 768)), (768, (256,))]


def test_experts_are_found_without_weights(mixture_of_experts: Callable[[str], Path]) -> None:
    shape = needs.shape_of(open_base(mixture_of_experts("qwen3_moe")).config)
    experts = [(reading.width, reading.rows) for reading in shape.layers[0].readings if reading.expert]
    assert experts == [(64, (32, 32)), (32, (64,))] * 8


def test_too_little_memory_or_disk_is_refused_before_anything_is_done(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_texts(Recipe(variants=("gguf-q8_0",), calibration=Calibration(windows=1, window=32)))
    base, out = fingerprint_folder(bundled), tmp_path / "out"
    out.mkdir()
    (out / "hubquant.json").write_text("of an earlier pass")
    with monkeypatch.context() as small:
        small.setattr(memory, "available", lambda: 1000)
        with pytest.raises(MemoryShort, match=r"needs about \d\.\d GB of memory, and 0\.0 GB are free.*--anyway"):
            pipeline.quantize(bundled, out, recipe, base, silent)
    with monkeypatch.context() as small:
        small.setattr(needs.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(DiskFull, match=r"needs about 0\.0 GB in .*--anyway"):
            pipeline.quantize(bundled, out, recipe, base, silent)
        assert (out / "hubquant.json").read_text() == "of an earlier pass"
        assert pipeline.quantize(bundled, out, recipe, base, silent, anyway=True).artifacts
