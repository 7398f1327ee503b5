from typing import Any

import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hubquant.formats.gguf.rope import ROPE_FREQS, rope_factors

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_llama3_factors_are_those_of_transformers() -> None:
    config = {**CONFIG, "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}}
    expected, attention = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.for_model(**config), torch.device("cpu"))
    factors = rope_factors(config)[ROPE_FREQS]
    assert factors.shape == (32,)
    plain = 500000.0 ** -(torch.arange(0, 64, 2).double() / 64)
    torch.testing.assert_close((plain / factors.double()).float(), expected, rtol=1e-5, atol=0)
    assert attention == 1.0
    assert rope_factors(CONFIG) == {}
