"""Models whose published names are not their modules' names, in the forms that have been published."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from hubquant.formats import gptq
from hubquant.integrations.quantizer import PACKED_LINEARS

from .test_experts import CONFIGS, random_codes

pytestmark = pytest.mark.usefixtures("our_loaders")

TEXT: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
    "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
}  # fmt: skip
VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [0],
}


def pack(folder: Path, ending: str, transposed: bool = False) -> Path:
    """The folder with every linear packed whose name ends so, and its dense tensors replaced by what the codes mean."""
    random = torch.Generator().manual_seed(1)
    dense, packed = load_file(folder / "model.safetensors"), {}
    for name, tensor in dense.items():
        linear = name.removesuffix(".weight")
        if linear.endswith(ending) and tensor.dim() == 2:
            codes = random_codes(tensor.T.shape if transposed else tensor.shape, random)
            dense[name] = codes.dequantize().T.contiguous() if transposed else codes.dequantize()
            packed |= {f"{linear}.{s}": t for s, t in gptq.pack(codes).items()}
        else:
            packed[name] = tensor
    save_file(dense, folder / "model.safetensors", metadata={"format": "pt"})
    other = folder.with_name("packed")
    other.mkdir()
    save_file(packed, other / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": CONFIGS["gptq"]}
    (other / "config.json").write_text(json.dumps(config))
    return other


def check(kind: Any, folder: Path, packed: Path, n_packed: int) -> None:
    model, info = kind.from_pretrained(packed, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert sum(isinstance(m, PACKED_LINEARS) for m in model.modules()) == n_packed
    tokens = torch.arange(2, 14)[None]
    dense: nn.Module = kind.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected, found = dense(tokens).logits, model(tokens).logits
    # both in float32: another order of sums of at most 96 terms, through two layers
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()))
    model.save_pretrained(packed.with_name("again"))
    before, after = (load_file(f / "model.safetensors") for f in (packed, packed.with_name("again")))
    assert sorted(n for n in before if n.endswith("qweight")) == sorted(n for n in after if n.endswith("qweight"))


@pytest.mark.parametrize("prefix", ["model.", "model.language_model."])
def test_a_text_model_inside_a_larger_one(prefix: str, tmp_path: Path) -> None:
    """Published once without and once with the name of the part."""
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=TEXT, vision_config=VISION))
    model.save_pretrained(tmp_path / "dense")
    stored = load_file(tmp_path / "dense" / "model.safetensors")
    renamed = {prefix + n.removeprefix("model.") if n.startswith("model.") else n: t for n, t in stored.items()}
    if prefix != "model.":
        renamed = {f"model.{n}" if n.startswith("visual.") else n: t for n, t in renamed.items()}
    save_file(renamed, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    packed = pack(tmp_path / "dense", "self_attn.q_proj")
    check(AutoModelForImageTextToText, tmp_path / "dense", packed, 2)


def test_linears_that_are_stored_transposed(tmp_path: Path) -> None:
    """GPT-2's: packed, they are as everyone else's."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "dense")
    check(GPT2LMHeadModel, tmp_path / "dense", pack(tmp_path / "dense", "c_fc", transposed=True), 2)
