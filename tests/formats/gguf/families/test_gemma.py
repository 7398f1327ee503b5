from typing import Any

import pytest

from hubquant.errors import BadModel
from tests.formats.gguf.familymodels import hyperparameters

GEMMA = {"head_dim": 256, "sliding_window": 512}


def test_gemma2_caps_logits_and_slides_in_every_other_layer() -> None:
    found = hyperparameters("gemma2", **GEMMA)
    assert found["attn_logit_softcapping"] == 50.0
    assert found["final_logit_softcapping"] == 30.0
    assert found["attention.sliding_window"] == 512
    assert found["attention.key_length"] == 256
    assert found["context_length"] == 4096
    assert "attention.sliding_window_pattern" not in found  # llama.cpp's own
    full_first = ["full_attention", "sliding_attention"] * 4
    assert hyperparameters("gemma2", **GEMMA, layer_types=full_first)["attention.sliding_window_pattern"] == [False, True] * 4


def test_gemma3_rotates_sliding_layers_by_another_base() -> None:
    found = hyperparameters("gemma3_text", **GEMMA)
    assert (found["rope.freq_base"], found["rope.freq_base_swa"]) == (1e6, 1e4)
    assert "attention.sliding_window_pattern" not in found  # five of six
    assert "final_logit_softcapping" not in found
    whole = hyperparameters("gemma3_text", **GEMMA, layer_types=["full_attention"] * 8)
    assert "attention.sliding_window" not in whole


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        (
            "gemma2",
            {**GEMMA, "query_pre_attn_scalar": 144},
            "query_pre_attn_scalar is 144; .* divides by the root of 256",
        ),
        ("gemma2", {**GEMMA, "attn_logit_softcapping": None}, "attn_logit_softcapping is None"),
        ("gemma2", {**GEMMA, "final_logit_softcapping": None}, "final_logit_softcapping is None"),
        ("gemma2", {**GEMMA, "layer_types": ["full_attention"] * 8}, "no layer has a sliding window"),
        ("gemma2", {**GEMMA, "hidden_activation": "gelu"}, "hidden_act is 'gelu'; llama.cpp's gemma2 computes gelu_pytorch_tanh"),
        ("gemma3_text", {**GEMMA, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ("gemma3_text", {**GEMMA, "use_bidirectional_attention": True}, "attends to the past only"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(model_type: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        hyperparameters(model_type, **changes)
