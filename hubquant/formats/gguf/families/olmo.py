"""OLMo 2: norms after the blocks only, and norms of q and k over all heads together."""

from hubquant.errors import BadModel
from hubquant.formats.gguf.families.family import Family
from hubquant.formats.gguf.families.tensors import ATTENTION, GATED_MLP, NORMS_AFTER, QK_NORMS
from hubquant.formats.gguf.hyperparameters import (
    Config,
    attention,
    check_activation,
    check_heads_fill_the_model,
    rms_norm,
    sizes,
)
from hubquant.formats.gguf.metadata import Value
from hubquant.formats.gguf.rope import rope


def _olmo2(config: Config) -> dict[str, Value]:
    check_activation(config, "olmo2")
    check_heads_fill_the_model(config, "olmo2")
    if config.get("tie_word_embeddings"):
        raise BadModel("config.json: tie_word_embeddings is true; llama.cpp's olmo2 needs an output matrix of its own")
    return {**sizes(config), **attention(config), **rms_norm(config), **rope(config, ("default", "linear", "yarn"))}


OLMO2 = Family("olmo2", ("olmo2",), _olmo2, layer=(*NORMS_AFTER, *QK_NORMS, *ATTENTION, *GATED_MLP))
