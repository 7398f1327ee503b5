from typing import Any

import pytest

from hubquant.errors import BadModel
from tests.formats.gguf.familymodels import hyperparameters


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("olmo2", {"tie_word_embeddings": True}, "llama.cpp's olmo2 needs an output matrix of its own"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(model_type: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        hyperparameters(model_type, **changes)
