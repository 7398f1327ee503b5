"""GPT-2 in the pass: its Conv1D are linears inside, and lie transposed in checkpoints and in what is published unpacked."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from hubquant.calibrate.source import with_texts
from hubquant.hub.snapshot import fingerprint_folder
from hubquant.model.checkpoint import Checkpoint, TensorSource
from hubquant.model.decoder import Decoder, read_config
from hubquant.pipeline import quantize, source
from hubquant.progress import silent
from hubquant.recipe import Calibration, Recipe

VARIANTS = ("gptq-int4-g128", "awq-int4-g128", "gguf-q8_0")


@pytest.fixture(scope="module")
def gpt2(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of which half can be packed: 102 in the middle of the feed-forward are no whole words."""
    folder = tmp_path_factory.mktemp("gpt2") / "model"
    shape = {"vocab_size": 2048, "n_positions": 128, "n_embd": 64, "n_inner": 102, "n_layer": 2, "n_head": 4}
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", **shape, initializer_range=0.2, bos_token_id=None, eos_token_id=None)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled / file, folder)
    return folder


@torch.no_grad()
def logits(folder: Path, held_by: TensorSource, tokens: Tensor) -> Tensor:
    decoder = Decoder(read_config(folder), held_by)
    hidden = decoder.embed(tokens)
    for index in range(2):
        with decoder.layer(index) as layer:
            decoder.run(index, layer, hidden)
    with decoder.head():
        return decoder.logits(hidden)


@torch.no_grad()
def whole(folder: Path, tokens: Tensor) -> Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits


def close(found: Tensor, expected: Tensor) -> None:
    """Equal but for the order in which at most 102 products are summed, in four matrices of two layers."""
    torch.testing.assert_close(found, expected, rtol=0, atol=float(expected.abs().max()) * 102 * 2.0**-22)


def test_layer_by_layer_it_is_the_model(gpt2: Path, tokens: Tensor) -> None:
    decoder = Decoder(read_config(gpt2), Checkpoint(gpt2))
    assert decoder.shapes()["transformer.h.0.mlp.c_fc.weight"] == (102, 64)
    assert isinstance(decoder.layers[0].get_submodule("attn.c_attn"), nn.Linear)
    close(logits(gpt2, Checkpoint(gpt2), tokens), whole(gpt2, tokens))


def test_checkpoints_may_leave_the_prefix_out(gpt2: Path, tokens: Tensor, tmp_path: Path) -> None:
    """As the first GPT-2 does, whose buffers stand beside the weights."""
    shutil.copytree(gpt2, tmp_path, dirs_exist_ok=True)
    weights = {name.removeprefix("transformer."): value for name, value in load_file(gpt2 / "model.safetensors").items()}
    save_file({**weights, "h.0.attn.bias": torch.ones(1, 1, 128, 128)}, tmp_path / "model.safetensors", {"format": "pt"})
    close(logits(tmp_path, Checkpoint(tmp_path), tokens), whole(gpt2, tokens))


def test_what_is_published_is_read_alike_by_us_and_by_transformers(gpt2: Path, tokens: Tensor, tmp_path: Path) -> None:
    recipe = with_texts(Recipe(variants=VARIANTS, calibration=Calibration(windows=2, window=64)))
    report = quantize(gpt2, tmp_path, recipe, fingerprint_folder(gpt2), silent)
    assert [a.variant for a in report.artifacts] == list(VARIANTS), report.notes
    base = whole(gpt2, tokens)
    for artifact in report.artifacts:
        ours = logits(gpt2, source(tmp_path, artifact), tokens)
        if artifact.main_file.endswith(".gguf"):
            # 8 bits in blocks of 32: steps of 1/127 of the largest weight, a thousandth of what the logits are
            assert float((ours - base).std()) < 0.02 * float(base.std())
        else:
            kept = {t.name for t in artifact.tensors if t.type == "F16"}
            assert kept == {f"transformer.h.{i}.mlp.{name}.weight" for i in range(2) for name in ("c_fc", "c_proj")}
            close(ours, whole(tmp_path / artifact.folder, tokens))
