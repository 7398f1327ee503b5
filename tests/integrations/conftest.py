"""A small model whose linears have biases and do not all fit a group, quantized; and copies to spoil."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.quantizers import auto

from hubquant import pipeline
from hubquant.calibrate.source import with_texts
from hubquant.formats.packedsource import PackedSource
from hubquant.hub.snapshot import fingerprint_folder
from hubquant.integrations.quantizer import PACKED_LINEARS
from hubquant.integrations.transformers import GptqLoader, install, restore
from hubquant.progress import silent
from hubquant.recipe import Calibration, Recipe

Spoil = Callable[..., Path]


@pytest.fixture
def our_loaders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ours whether or not gptqmodel is installed; and put back as they were."""
    installed = auto.AUTO_QUANTIZER_MAPPING["gptq"] is GptqLoader
    monkeypatch.setenv("HUBQUANT_BACKEND", "1")
    install()
    yield
    monkeypatch.setenv("HUBQUANT_BACKEND", "1")
    if installed:
        install()
    else:
        restore()


@pytest.fixture(scope="session")
def odd(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a random Llama with biases everywhere; down_proj reads 80 channels, which no group divides."""
    folder = tmp_path_factory.mktemp("odd")
    base = folder / "base"
    config = LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if name.endswith("bias") else 0.1)
    model.save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(bundled / name, base / name)
    recipe = Recipe(variants=("gptq-int4-g128", "awq-int4-g128"), calibration=Calibration(windows=2, window=64))
    pipeline.quantize(base, folder / "out", with_texts(recipe), fingerprint_folder(base), silent)
    return folder / "out"


@pytest.fixture
def spoil(odd: Path, tmp_path: Path) -> Spoil:
    """Copy a variant's folder with other tensors or settings: spoil("gptq", {"name": tensor or None}, bits=3)."""

    def copy(method: str, tensors: dict[str, Tensor | None] | None = None, **settings: Any) -> Path:
        folder = tmp_path / f"{method}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(odd / f"{method}-int4-g128", folder)
        if tensors is not None:
            stored = load_file(folder / "model.safetensors") | tensors
            save_file({n: t for n, t in stored.items() if t is not None}, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] |= settings
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


def dense(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The model with the folder's weights decoded, as plain linears in `dtype`."""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    source = PackedSource(folder)
    missing, unexpected = model.load_state_dict({n: source.tensor(n) for n in source.names()}, strict=False)
    assert missing in ([], ["lm_head.weight"])
    assert not unexpected
    model.tie_weights()
    return model


def unpack(model: nn.Module) -> None:
    """Put plain linears with the decoded weights in the packed ones' places: the unit matrix times each of them."""
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, PACKED_LINEARS)]:
        with torch.no_grad():
            weight = layer(torch.eye(layer.in_features)).T
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        if layer.bias is not None:
            weight = weight - layer.bias.float()[:, None]
            linear.bias.data = layer.bias.float()
        linear.weight.data = weight.contiguous()
        model.set_submodule(name, linear)
