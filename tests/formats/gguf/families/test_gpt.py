from typing import Any

import pytest
import torch

from hubquant.errors import BadModel
from hubquant.formats.gguf.families import family_of_file, family_of_model
from hubquant.formats.gguf.families.gpt import FALCON, FALCON_TWO_NORMS
from hubquant.formats.gguf.hyperparameters import completed

GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512}
NEOX = {"model_type": "gpt_neox", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
FALCON_7B = {"model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FALCON_40B = {**FALCON_7B, "new_decoder_architecture": True, "num_kv_heads": 2}
STARCODER2 = {**NEOX, "model_type": "starcoder2", "num_key_value_heads": 2}


def values(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    whole = completed({**config, **changes})
    return family_of_model(whole).hyperparameters(whole)


def test_gpt2s_own_names() -> None:
    assert values(GPT2) == {
        "context_length": 1024,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 256,
        "vocab_size": 512,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_epsilon": 1e-5,
    }
    assert values(GPT2, n_inner=96)["feed_forward_length"] == 96


def test_gptneox_rotates_a_part_of_each_head() -> None:
    found = values(NEOX, rotary_pct=0.5, use_parallel_residual=False)
    assert (found["rope.dimension_count"], found["use_parallel_residual"]) == (8, False)
    assert values(NEOX)["rope.dimension_count"] == 4


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({}, 1),
        ({"multi_query": False}, 4),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2),
        ({"new_decoder_architecture": True, "num_kv_heads": 2, "multi_query": False}, 2),
    ],
)
def test_how_many_queries_share_a_key_in_falcon(changes: dict[str, Any], shared: int) -> None:
    assert values(FALCON_7B, **changes)["attention.head_count_kv"] == shared


def test_falcons_with_one_norm_and_two() -> None:
    assert family_of_model(FALCON_7B) is FALCON
    assert family_of_model({**FALCON_40B, "num_ln_in_parallel_attn": 1}) is FALCON
    assert family_of_model(FALCON_40B) is FALCON_TWO_NORMS
    for family in (FALCON, FALCON_TWO_NORMS):
        layout = family.layout(2, values(FALCON_40B))
        stored = {name for hf_name in layout.needed for name in layout.gguf_names(hf_name)}
        assert family_of_file("falcon", stored) is family


def test_falcons_fused_matrix_is_stored_queries_first() -> None:
    layout = FALCON_TWO_NORMS.layout(1, values(FALCON_40B))
    name = "transformer.h.0.self_attention.query_key_value.weight"
    # two groups of two queries, a key and a value, 16 rows each
    rows = torch.arange(128)[:, None].expand(128, 64)
    slots, shapes = layout.slots({name: (128, 64)})
    assert shapes == {"blk.0.attn_qkv.weight": (128, 64)}
    stored = torch.cat([slot.values(rows, layout.parameters) for slot in slots[name]])[:, 0]
    queries = [*range(32), *range(64, 96)]
    assert stored.tolist() == [*queries, *range(32, 48), *range(96, 112), *range(48, 64), *range(112, 128)]
    with pytest.raises(BadModel, match="cannot share evenly"):
        layout.slots({name: (127, 64)})


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        (GPT2, {"scale_attn_weights": False}, "scale_attn_weights is False"),
        (GPT2, {"activation_function": "relu"}, "'relu'.*gpt2 computes gelu"),
        (NEOX, {"attention_bias": False}, "attention_bias is False.*needs the biases"),
        (NEOX, {"tie_word_embeddings": True}, "tie_word_embeddings is True.*output matrix"),
        (NEOX, {"hidden_act": "silu"}, "'silu'.*gptneox computes gelu"),
        (FALCON_7B, {"alibi": True}, "alibi is True"),
        (FALCON_7B, {"bias": True}, "bias is True"),
        (FALCON_7B, {"parallel_attn": False}, "parallel_attn is False"),
        (STARCODER2, {"use_bias": False}, "use_bias is False.*needs the biases"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        values(config, **changes)
