"""Mixtures of experts as GGUF through the pass: each expert with its own importance, and those that have none recorded."""

import re
from collections.abc import Callable
from pathlib import Path

import torch

from hubquant import pipeline
from hubquant.calibrate.source import with_texts
from hubquant.formats.gguf.header import GgufHeader
from hubquant.formats.gguf.imatrix import Imatrix
from hubquant.formats.gguf.reader import GgufSource
from hubquant.hub.snapshot import fingerprint_folder
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.decoder import Decoder, read_config
from hubquant.progress import silent
from hubquant.quantize.ggml import decode, encode
from hubquant.recipe import Calibration, Recipe


def test_experts_have_an_importance_of_their_own(mixture_of_experts: Callable[[str], Path], tmp_path: Path) -> None:
    model = mixture_of_experts("qwen3_moe")
    recipe = Recipe(variants=("gguf-q4_0",), calibration=Calibration(windows=1, window=32))
    report = pipeline.quantize(model, tmp_path / "out", with_texts(recipe), fingerprint_folder(model), silent)
    artifact = report.artifacts[0]
    path = tmp_path / "out" / artifact.folder / artifact.main_file
    imatrix = Imatrix.read(path.with_name("imatrix.gguf"))
    name = "blk.1.ffn_gate_exps.weight"
    counts = imatrix.counts[name]
    assert len(counts) == 8 and sum(counts) == 2 * 32, "two experts for each of 32 tokens"
    assert GgufHeader.read(path).tensors[name].shape == (8, 32, 64)
    base, stored = Decoder(read_config(model), Checkpoint(model)), GgufSource(path)
    records = {r.name: r for r in artifact.tensors}
    starved = [n < 64 / 8 for n in counts]
    assert any(starved) and not all(starved)
    for expert, hungry in enumerate(starved):
        hf_name = f"model.layers.1.mlp.experts.{expert}.gate_proj.weight"
        own = None if hungry else imatrix.importance(name)[expert]
        alone = decode(encode(base.source.tensor(hf_name), "Q4_0", own), "Q4_0")
        assert torch.equal(stored.tensor(hf_name), alone) == hungry, "error feedback where there are tokens enough"
        assert bool(re.search(r"encoded without importance: .* reached it, 8 are needed", records[hf_name].note)) == hungry
        assert (records[hf_name].output_error is None) == hungry
