"""Variants by name through from_pretrained: whatever bits, groups, order and overrides, our loader has the decoded weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hubquant_kernels.layers import GptqLinear
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from hubquant import pipeline
from hubquant.calibrate.source import with_texts
from hubquant.hub.snapshot import fingerprint_folder
from hubquant.progress import silent
from hubquant.recipe import Calibration, Recipe

from .conftest import dense

NAMES = (
    "gptq-int2-g64-asym", "gptq-int3-g128", "gptq-int3-g32-asym-head", "gptq-int4-g64-actorder", "gptq-int4-g128-static",
    "gptq-int8-row", "gptq-int8-row-asym-head", "awq-int4-g32", "awq-int4-row", "gptq-auto@4.5bpw",
)  # fmt: skip
OVERRIDES = (r".*\.layers\.0\..*down_proj=int8-row-asym", r".*\.layers\.1\..*(q|k|v)_proj=int3-g64", r".*o_proj=16")

pytestmark = pytest.mark.usefixtures("our_loaders")


@pytest.fixture(scope="module")
def base(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a head of its own."""
    folder = tmp_path_factory.mktemp("untied")
    config = LlamaConfig(
        vocab_size=2048, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(bundled / name, folder / name)
    return folder


def made(base: Path, out: Path, names: tuple[str, ...], dynamic: tuple[str, ...] = ()) -> Path:
    recipe = with_texts(Recipe(variants=names, calibration=Calibration(windows=2, window=64), dynamic=dynamic))
    report = pipeline.quantize(base, out, recipe, fingerprint_folder(base), silent)
    assert [artifact.variant for artifact in report.artifacts] == list(names), report.notes
    return out


@pytest.fixture(scope="module")
def out(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(base, tmp_path_factory.mktemp("variants") / "out", NAMES)


@torch.no_grad()
def check(folder: Path) -> nn.Module:
    """The loaded model; its logits are those of the decoded weights."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokens = torch.randint(1, 2048, (2, 24), generator=torch.Generator().manual_seed(0))
    exact = dense(folder, torch.float64)(tokens).logits
    # as far as dense linears are, in what a CPU multiplies packed words of 4 bits in, and as much in the other direction
    rounded = torch.bfloat16 if any(getattr(m, "packed", None) is not None for m in model.modules()) else torch.float32
    tolerance = 2 * float((dense(folder, rounded)(tokens).logits.double() - exact).abs().max())
    assert float((model(tokens).logits.double() - exact).abs().max()) <= tolerance < float(exact.std()) / 2
    loaded: nn.Module = model
    return loaded


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_loads_with_what_was_decoded(out: Path, name: str) -> None:
    model = check(out / name)
    block = json.loads((out / name / "config.json").read_text())["quantization_config"]
    assert isinstance(model.lm_head, GptqLinear) == name.endswith("-head") == block.get("lm_head", False)


def test_overrides_load_too(base: Path, tmp_path: Path) -> None:
    folder = made(base, tmp_path / "out", ("gptq-int4-g128",), OVERRIDES) / "gptq-int4-g128"
    layers = check(folder).model.layers
    down, query, kept = layers[0].mlp.down_proj, layers[1].self_attn.q_proj, layers[0].self_attn.o_proj
    assert (down.bits, tuple(down.scales.shape)) == (8, (1, 128))
    assert (query.bits, tuple(query.scales.shape)) == (3, (2, 128))
    assert type(kept) is nn.Linear
    assert layers[1].mlp.down_proj.bits == layers[0].self_attn.q_proj.bits == 4
    block = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert block["dynamic"][r"+:^model\.layers\.1\.self_attn\.qkv_proj$"] == {"bits": 3, "group_size": 64, "sym": True}


def test_a_pass_that_was_stopped_goes_on_with_the_same_bytes(base: Path, out: Path, tmp_path: Path) -> None:
    """Trials of widths and what they cost, linears kept, the head that comes after the layers."""
    names = ("gptq-int3-g32-asym-head", "gptq-auto@4.5bpw")

    def stop(_stage: str, done: int, _total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    recipe = with_texts(Recipe(variants=names, calibration=Calibration(windows=2, window=64)))
    with pytest.raises(KeyboardInterrupt):
        pipeline.quantize(base, tmp_path / "out", recipe, fingerprint_folder(base), stop)
    pipeline.quantize(base, tmp_path / "out", recipe, fingerprint_folder(base), silent)
    for name in names:
        for file in ("model.safetensors", "config.json"):
            assert (tmp_path / "out" / name / file).read_bytes() == (out / name / file).read_bytes()


def test_a_head_that_is_the_embedding_is_not_packed(bundled: Path, tmp_path: Path) -> None:
    recipe = Recipe(variants=("gptq-int4-g128-head", "gguf-q8_0"), calibration=Calibration(windows=1, window=64))
    report = pipeline.quantize(bundled, tmp_path / "out", recipe, fingerprint_folder(bundled), silent)
    assert [artifact.variant for artifact in report.artifacts] == ["gguf-q8_0"]
    assert "gptq-int4-g128-head not made: its head is the embedding once more" in report.notes[0]
