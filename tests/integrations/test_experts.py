"""Mixtures of experts of other families, packed here from random codes, against transformers' own model of the same weights."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
)

from hubquant.errors import BadModel
from hubquant.formats import awq, gptq
from hubquant.integrations.experts import PackedExperts
from hubquant.integrations.quantizer import PACKED_LINEARS
from hubquant.model.experts import Fused, is_fused
from hubquant.quantize.grid import Grid, QuantizedWeight

from .loadingresults import record

pytestmark = pytest.mark.usefixtures("our_loaders")

SHAPE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 32, "max_position_embeddings": 64, "num_experts_per_tok": 2, "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
LATENT = {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32}
FAMILIES: dict[str, PreTrainedConfig] = {
    "mixtral": MixtralConfig(**SHAPE, intermediate_size=32, num_local_experts=3),
    "qwen2_moe": Qwen2MoeConfig(**SHAPE, num_experts=3, moe_intermediate_size=32, shared_expert_intermediate_size=64),
    "olmoe": OlmoeConfig(**SHAPE, num_experts=3, intermediate_size=32),
    "deepseek_v3": DeepseekV3Config(
        **(SHAPE | {"head_dim": 16}), **LATENT, n_routed_experts=4, moe_intermediate_size=32, intermediate_size=96,
        first_k_dense_replace=1, n_group=2, topk_group=1, rope_interleave=True,
    ),
    "gpt_oss": GptOssConfig(**SHAPE, num_local_experts=3, intermediate_size=32, layer_types=["full_attention"] * 2),
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False, "checkpoint_format": "gptq"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
}


def random_codes(shape: torch.Size, random: torch.Generator) -> QuantizedWeight:
    groups = shape[1] // 32
    return QuantizedWeight(
        torch.randint(0, 16, tuple(shape), generator=random).to(torch.uint8),
        (0.02 * torch.rand(shape[0], groups, generator=random) + 0.01).half(),
        torch.randint(4, 12, (shape[0], groups), generator=random).to(torch.uint8),
        Grid(4, 32, False),
    )


def published(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The tensors as transformers writes them; the experts of gpt-oss, which it writes fused, one by one."""
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, module in [(n, m) for n, m in model.named_modules() if is_fused(m)]:
        fused = Fused(module)
        if f"{name}.down_proj" not in tensors:
            continue
        for tensor in [f"{linear}.{kind}" for linear in fused.linears for kind in ("weight", "bias")]:
            for index, entry in enumerate(tensors[f"{name}.{fused.parameter(tensor)}"]):
                tensors[f"{name}.{index}.{tensor}"] = fused.part(tensor, entry).contiguous()
        for parameter in ("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias"):
            del tensors[f"{name}.{parameter}"]
    return tensors


def put_back(model: nn.Module, dense: dict[str, Tensor], folder: Path) -> nn.Module:
    """transformers' own model of `dense`: by from_pretrained, or filled expert by expert where files hold them fused."""
    if not any(".experts.0.gate_proj.bias" in n for n in dense):
        save_file(dense, folder / "model.safetensors", metadata={"format": "pt"})
        reloaded: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return reloaded
    model.load_state_dict({n: t for n, t in dense.items() if n in model.state_dict()}, strict=False)
    with torch.no_grad():
        for name, module in [(n, m) for n, m in model.named_modules() if is_fused(m)]:
            fused = Fused(module)
            for tensor in [f"{linear}.{kind}" for linear in fused.linears for kind in ("weight", "bias")]:
                for index in range(fused.count):
                    entry = module.get_parameter(fused.parameter(tensor))[index]
                    fused.part(tensor, entry).copy_(dense[f"{name}.{index}.{tensor}"])
    return model


def make(family: str, method: str, folder: Path, packed_where: str = r"(proj|w[123])(_\w+)?$") -> tuple[Path, nn.Module]:
    """A packed folder, and transformers' model of the weights that its codes mean."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family], dtype=torch.float32).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    random = torch.Generator().manual_seed(1)
    dense, packed = published(model, folder / "dense"), {}
    for name, tensor in list(dense.items()):
        linear = name.removesuffix(".weight")
        if tensor.dim() == 2 and tensor.shape[0] % 8 == 0 and re.search(packed_where, linear) and "router" not in name:
            codes = random_codes(tensor.shape, random)
            dense[name] = codes.dequantize()
            packed |= {f"{linear}.{s}": t for s, t in {"gptq": gptq, "awq": awq}[method].pack(codes).items()}
        else:
            packed[name] = tensor
    (folder / "packed").mkdir()
    save_file(packed, folder / "packed" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "dense" / "config.json").read_text()) | {"quantization_config": CONFIGS[method]}
    (folder / "packed" / "config.json").write_text(json.dumps(config))
    return folder / "packed", put_back(model, dense, folder / "dense")


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    result: Tensor = model(torch.arange(2, 26).reshape(2, 12)).logits
    return result


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_experts_are_transformers_own(family: str, method: str, tmp_path: Path) -> None:
    folder, dense = make(family, method, tmp_path)
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    experts = [m for m in model.modules() if isinstance(m, PackedExperts)]
    assert len(experts) == (1 if family == "deepseek_v3" else 2)
    assert all(isinstance(linear, PACKED_LINEARS) for e in experts for x in e.experts() for linear in x.children())
    expected, found = logits(dense), logits(model)
    # both in float32: another order of sums of at most 96 terms, through two layers
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()))
    model.save_pretrained(tmp_path / "again")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before if n.endswith(("qweight", "qzeros", "scales", "g_idx")))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)), found)
    record(f"experts-{family}-{method}", "logits", float((found - expected).abs().max() / expected.std()))
    record(f"experts-{family}-{method}", "saved", True)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_a_layer_whose_experts_are_dense_stays_fused(family: str, tmp_path: Path) -> None:
    folder, dense = make(family, "gptq", tmp_path, r"(self_attn\..*_proj|layers\.1\..*experts\.\d.*)$")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert [isinstance(layer.mlp.experts, PackedExperts) for layer in model.model.layers] == [False, True]
    torch.testing.assert_close(logits(model), logits(dense), rtol=0, atol=1e-4 * float(logits(dense).std()))
    model.save_pretrained(tmp_path / "again")
    assert load_file(folder / "model.safetensors").keys() == load_file(tmp_path / "again" / "model.safetensors").keys()


def test_experts_are_packed_all_or_none(tmp_path: Path) -> None:
    folder, _ = make("mixtral", "gptq", tmp_path, r"experts\.[01]\.w[123]$")
    with pytest.raises(BadModel, match=r"some experts of model\.layers\.0\.mlp\.experts packed, but not .*experts\.2\.w"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_an_expert_that_is_not_in_the_files(tmp_path: Path) -> None:
    folder, _ = make("qwen2_moe", "awq", tmp_path)
    stored = load_file(folder / "model.safetensors")
    damaged = {n: t for n, t in stored.items() if not n.startswith("model.layers.1.mlp.experts.2.up_proj")}
    save_file(damaged, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadModel, match=r"not model\.layers\.1\.mlp\.experts\.2\.up_proj: all or none"):
        AutoModelForCausalLM.from_pretrained(folder)
