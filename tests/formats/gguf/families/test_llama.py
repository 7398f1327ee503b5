from typing import Any

import pytest

from hubquant.errors import BadModel
from tests.formats.gguf.familymodels import hyperparameters

LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 1024,
    "long_factor": [2.0] * 8,
    "short_factor": [1.0] * 8,
}


def test_granite_scales() -> None:
    granite = hyperparameters(
        "granite", attention_multiplier=0.25, embedding_multiplier=12, residual_multiplier=0.5, logits_scaling=8
    )
    assert [granite[k] for k in ("attention.scale", "embedding_scale", "residual_scale", "logit_scale")] == [0.25, 12.0, 0.5, 8.0]


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("smollm3", {"no_rope_layer_interval": 2}, "every fourth layer"),
        ("smollm3", {"rope_parameters": {**LONG, "rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ("granite", {"residual_multiplier": 0.0}, "residual_scale is 0"),
        ("llama", {"num_hidden_layers": "8"}, "config.json cannot be used: .*num_hidden_layers"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(model_type: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        hyperparameters(model_type, **changes)
