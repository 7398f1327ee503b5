import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hubquant.formats.gguf.rope import ROPE_FREQS, rope_factors
from tests.formats.gguf.familymodels import LLAMA3_ROPE as LLAMA3
from tests.formats.gguf.familymodels import LLAMA_CONFIG as CONFIG


def test_llama3_factors_are_those_of_transformers() -> None:
    config = {**CONFIG, "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}}
    expected, attention = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.for_model(**config), torch.device("cpu"))
    factors = rope_factors(config)[ROPE_FREQS]
    assert factors.shape == (32,)
    plain = 500000.0 ** -(torch.arange(0, 64, 2).double() / 64)
    torch.testing.assert_close((plain / factors.double()).float(), expected, rtol=1e-5, atol=0)
    assert attention == 1.0
    assert rope_factors(CONFIG) == {}
