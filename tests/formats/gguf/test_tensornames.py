"""gguf's map of names, which one architecture's must not change for the others."""

import gguf

from hubquant.formats.gguf.tensornames import TensorNames

NORM, HEAD = "model.layers.0.post_attention_layernorm", "lm_head"


def test_names_of_one_architecture_stay_its_own() -> None:
    assert TensorNames(gguf.MODEL_ARCH.ARCTIC, 1).get_name(NORM) == "blk.0.ffn_norm_exps"
    llama = TensorNames(gguf.MODEL_ARCH.LLAMA, 1)
    assert llama.get_name(NORM) == "blk.0.ffn_norm"
    assert llama.get_name(HEAD) == "output"
