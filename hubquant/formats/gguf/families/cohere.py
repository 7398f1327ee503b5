"""Command R7B (Cohere 2): attention and feed-forward side by side, sliding layers that rotate and full ones that do not."""

from hubquant.formats.gguf.families.family import Family
from hubquant.formats.gguf.families.tensors import ATTENTION, GATED_MLP
from hubquant.formats.gguf.hyperparameters import (
    Config,
    attention,
    check_activation,
    check_heads_fill_the_model,
    number,
    sizes,
    sliding_window,
)
from hubquant.formats.gguf.metadata import Value
from hubquant.formats.gguf.rope import rope


def _cohere2(config: Config) -> dict[str, Value]:
    check_activation(config, "cohere2")
    check_heads_fill_the_model(config, "cohere2")
    return {
        **sizes(config),
        **attention(config),
        "attention.layer_norm_epsilon": number(config, "layer_norm_eps", 1e-5),
        **rope(config, ("default",)),
        "rope.scaling.type": "none",
        **sliding_window(config, period=4),
        "logit_scale": number(config, "logit_scale"),
    }


# transformers rotates pairs here as llama.cpp does: nothing changes places
COHERE2 = Family("cohere2", ("cohere2",), _cohere2, layer=("input_layernorm.weight", *ATTENTION, *GATED_MLP), head=None)
