"""config.json → {architecture}.*: what llama.cpp is told, and what is refused because it would compute something else."""

from typing import Any

import pytest

from hubquant.errors import BadModel
from hubquant.formats.gguf.families import family_of_model
from tests.formats.gguf.familymodels import LLAMA3_ROPE as LLAMA3
from tests.formats.gguf.familymodels import LLAMA_CONFIG as CONFIG


def values(**changes: Any) -> dict[str, Any]:
    config = {**CONFIG, **changes}
    return family_of_model(config).hyperparameters(config)


def test_hyperparameters() -> None:
    found = values(rope_theta=500000.0, rope_scaling=LLAMA3)
    assert found == {
        "context_length": 131072,
        "embedding_length": 2048,
        "block_count": 16,
        "feed_forward_length": 8192,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "rope.dimension_count": 64,
        "rope.freq_base": 500000.0,
        "vocab_size": 128256,
    }


def test_rope_theta_is_found_where_transformers_4_and_5_put_it() -> None:
    assert values(rope_theta=500000.0)["rope.freq_base"] == 500000.0
    assert values(rope_parameters={"rope_type": "default", "rope_theta": 500000.0})["rope.freq_base"] == 500000.0
    assert values()["rope.freq_base"] == 10000.0


def test_yarn() -> None:
    found = values(rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768})
    assert found["rope.scaling.type"] == "yarn"
    assert found["rope.scaling.factor"] == 4.0
    assert found["rope.scaling.original_context_length"] == 32768
    assert "rope.scaling.attn_factor" not in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope type 'longrope'.*default, llama3, linear, yarn"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"hidden_size": "2048"}, "hidden_size is '2048'"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"model_type": "qwen2", "head_dim": 128}, "32 heads of 128"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        values(**changes)


def test_context_ends_where_a_sliding_window_would_begin() -> None:
    assert values(model_type="mistral", sliding_window=4096)["context_length"] == 4096
    assert values(model_type="mistral", sliding_window=None)["context_length"] == 131072
    qwen = {"model_type": "qwen2", "sliding_window": 4096}
    assert values(**qwen, use_sliding_window=False)["context_length"] == 131072
    assert values(**qwen, use_sliding_window=True, layer_types=["full_attention"] * 16)["context_length"] == 131072
    assert values(**qwen, use_sliding_window=True, layer_types=["sliding_attention"] * 16)["context_length"] == 4096
