import gguf
import pytest
import torch

from hubquant.errors import BadModel
from hubquant.formats.gguf.families import FAMILIES, Family, family_of_file, family_of_model

LLAMA = family_of_file("llama")


def layer_names(family: Family, layer: int) -> list[str]:
    return [f"model.layers.{layer}.{name}" for name in (*family.layer_tensors, *family.optional_tensors)]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.architecture)
def test_names_are_those_of_the_gguf_package(family: Family) -> None:
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    theirs = gguf.get_tensor_name_map(arch, 12)
    for name in (*layer_names(family, 11), "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert family.gguf_name(name) == theirs.get_name(name, try_suffixes=(".weight", ".bias"))
        assert family.hf_name(family.gguf_name(name) or "") == name


def test_buffers_are_not_stored_and_strangers_are_refused() -> None:
    assert LLAMA.gguf_name("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    with pytest.raises(BadModel, match=r"mlp\.experts\.gate.* architecture llama"):
        LLAMA.gguf_name("model.layers.0.mlp.experts.gate.weight")
    with pytest.raises(BadModel, match="ffn_gate_inp"):
        LLAMA.hf_name("blk.0.ffn_gate_inp.weight")


def test_model_types() -> None:
    assert family_of_model({"model_type": "mistral"}) is LLAMA
    with pytest.raises(BadModel, match=r"FalconForCausalLM \(model_type 'falcon'\).*llama, mistral, qwen2, qwen3"):
        family_of_model({"model_type": "falcon", "architectures": ["FalconForCausalLM"]})
    with pytest.raises(BadModel, match="'gemma'"):
        family_of_file("gemma")


def test_a_missing_or_a_spare_tensor_is_named() -> None:
    names = [LLAMA.gguf_name(name) or "" for i in range(2) for name in layer_names(LLAMA, i)]
    complete = {*names, "token_embd.weight", "output_norm.weight"}
    LLAMA.check_complete(complete, 2)
    with pytest.raises(BadModel, match=r"model\.layers\.1\.mlp\.down_proj\.weight"):
        LLAMA.check_complete(complete - {"blk.1.ffn_down.weight"}, 2)
    with pytest.raises(BadModel, match=r"model\.layers\.1\..*num_hidden_layers = 1"):
        LLAMA.check_complete(complete, 1)
    LLAMA.check_complete(complete - {"blk.0.attn_q.bias"}, 2)  # biases are optional


def test_reordered_rows_rotate_in_pairs_as_the_original_rotates_in_halves() -> None:
    """What the reordering is for: rotating (2i, 2i+1) of the stored rows is rotating (i, i + d/2) of the original rows."""
    heads, size, position = 3, 8, 5.0
    q = torch.randn(heads * size, dtype=torch.float64)
    angle = position * 10000.0 ** -(torch.arange(size // 2) / (size // 2)).double()
    halves = q.view(heads, 2, size // 2)
    rotated = torch.stack(
        [halves[:, 0] * angle.cos() - halves[:, 1] * angle.sin(), halves[:, 1] * angle.cos() + halves[:, 0] * angle.sin()], 1
    ).reshape(-1)
    rows = LLAMA.stored_rows("blk.0.attn_q.weight", (heads * size, 1), heads, 1)
    assert rows is not None
    pairs = torch.view_as_complex(q[rows].view(heads, size // 2, 2))
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).reshape(-1)
    torch.testing.assert_close(turned, rotated[rows])


def test_only_q_and_k_of_llama_are_reordered() -> None:
    assert LLAMA.stored_rows("blk.0.attn_v.weight", (8, 4), 2, 2) is None
    assert LLAMA.stored_rows("blk.0.attn_k.bias", (8,), 4, 2) is not None
    assert family_of_file("qwen2").stored_rows("blk.0.attn_q.weight", (8, 4), 2, 2) is None
    with pytest.raises(BadModel, match="6 rows, which 2 heads"):
        LLAMA.stored_rows("blk.0.attn_q.weight", (6, 4), 2, 2)
