from typing import Any

import pytest

from hubquant.errors import BadModel
from tests.formats.gguf.familymodels import hyperparameters


def test_cohere2_leaves_full_layers_unrotated() -> None:
    cohere = hyperparameters("cohere2", sliding_window=512)
    assert cohere["logit_scale"] == 0.0625
    assert cohere["attention.layer_norm_epsilon"] == 1e-5
    assert cohere["rope.scaling.type"] == "none"
    assert "attention.sliding_window_pattern" not in cohere  # three of four


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("cohere2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope type 'linear'"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(model_type: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        hyperparameters(model_type, **changes)
