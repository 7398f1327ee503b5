"""The language model of a multimodal checkpoint is quantized, everything else stays in 16 bit, and the whole loads again."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from hubquant_kernels.layers import GptqLinear
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from hubquant.bookmark import Bookmark
from hubquant.formats.packed import PackedWriter
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.decoder import Decoder
from hubquant.onepass import one_pass
from hubquant.recipe import variant

TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 128, "tie_word_embeddings": True, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "depth": 1, "out_hidden_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 32, "patch_size": 16, "num_position_embeddings": 16,
}  # fmt: skip
# what their authors' files call the parts, where transformers has other names by now
OLD_NAMES = {"gemma3": (("model.language_model.", "language_model.model."), ("model.vision_tower.", "vision_tower."))}


def published(model_type: str, folder: Path) -> None:
    """A tiny random multimodal model with a head for several tokens, which transformers does not know, by its published names."""
    text = {k: v for k, v in TEXT.items() if model_type == "qwen3_5" or not k.startswith(("linear", "layer_types"))}
    options = {"mm_tokens_per_image": 4} if model_type == "gemma3" else {}
    config = AutoConfig.for_model(model_type, text_config=text, vision_config=VISION, tie_word_embeddings=True, **options)
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for new, old in OLD_NAMES.get(model_type, ()):
        tensors = {old + n.removeprefix(new) if n.startswith(new) else n: t for n, t in tensors.items()}
    tensors["mtp.layers.0.mlp.down_proj.weight"] = torch.randn(64, 128)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("model_type", ["qwen3_5", "gemma3"])
def test_what_is_no_language_model_stays_as_it_is(model_type: str, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    published(model_type, base)
    decoder = Decoder(AutoConfig.from_pretrained(base), Checkpoint(base))
    shapes = decoder.shapes()
    linears = {n for n, shape in shapes.items() if len(shape) == 2 and n not in decoder.outside()}
    writer = PackedWriter(
        variant("gptq-int4-g32"), out, base, shapes, linears, stored=decoder.names.stored, left_alone=decoder.left_alone()
    )
    tokens = torch.randint(3, 100, (2, 64), generator=torch.Generator().manual_seed(1))
    one_pass(decoder, tokens, [writer], lambda *_: None, Bookmark(tmp_path / "bookmark", ""))
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    vision = [n for n in before if "vis" in n or n.startswith("mtp.")]
    assert len(vision) > 10 and all(torch.equal(after[n], before[n].half()) for n in vision)
    packed = {n.removesuffix(".qweight") for n in after if n.endswith(".qweight")}
    assert packed and {f"{n}.weight" for n in packed} < set(before)  # under the names that its author gave them
    assert not packed & {n.removesuffix(".weight") for n in vision}
    for kind in (AutoModelForCausalLM, AutoModelForImageTextToText):
        model, info = kind.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
        assert not info["missing_keys"] and sum(isinstance(m, GptqLinear) for m in model.modules()) == len(packed)
    assert any(isinstance(m, nn.Linear) for n, m in model.named_modules() if "vis" in n)
    assert json.loads((out / "config.json").read_text())["model_type"] == model_type


importlib.import_module("hubquant.integrations.transformers")  # our loaders
