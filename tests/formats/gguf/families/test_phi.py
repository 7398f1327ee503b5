from typing import Any

import pytest

from hubquant.errors import BadModel
from hubquant.formats.gguf.rope import LONG_FACTORS, SHORT_FACTORS, rope_factors
from tests.formats.gguf.familymodels import hyperparameters

LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 1024,
    "long_factor": [2.0] * 8,
    "short_factor": [1.0] * 8,
}


def test_phi3_has_factors_for_short_and_for_long_contexts() -> None:
    found = hyperparameters("phi3", rope_parameters=LONG, original_max_position_embeddings=1024)
    assert found["rope.scaling.original_context_length"] == 1024
    assert found["rope.scaling.attn_factor"] == pytest.approx((1 + 2 / 10) ** 0.5)  # sqrt(1 + ln(4096/1024) / ln(1024))
    extra = rope_factors({"rope_parameters": LONG})
    assert {name: tensor.tolist() for name, tensor in extra.items()} == {LONG_FACTORS: [2.0] * 8, SHORT_FACTORS: [1.0] * 8}


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("phi3", {"hidden_act": "gelu"}, "llama.cpp's phi3 computes silu"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(model_type: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        hyperparameters(model_type, **changes)
