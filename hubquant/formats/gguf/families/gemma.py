"""Gemma 2 and 3: norms of 1 + weight on both sides of a block, sliding windows, soft-capped logits."""

from hubquant.errors import BadModel
from hubquant.formats.gguf.families.family import Family, Form
from hubquant.formats.gguf.families.tensors import ATTENTION, GATED_MLP, NORMS_AFTER, QK_NORMS
from hubquant.formats.gguf.families.views import ONE_MORE
from hubquant.formats.gguf.hyperparameters import (
    Config,
    attention,
    check_activation,
    head_size,
    number,
    positive,
    require,
    rms_norm,
    sizes,
    sliding_layers,
    sliding_window,
)
from hubquant.formats.gguf.metadata import Value
from hubquant.formats.gguf.rope import rope, rope_parameters

_NORMS = ("input_layernorm.weight", "pre_feedforward_layernorm.weight", *NORMS_AFTER)


def _common(config: Config, architecture: str, layers_of_27b: int) -> dict[str, Value]:
    check_activation(config, architecture, ("gelu_pytorch_tanh",))
    require(config, "use_bidirectional_attention", False, False, because=f"llama.cpp's {architecture} attends to the past only")
    scale = head_size(config)
    if positive(config, "num_hidden_layers") == layers_of_27b:  # llama.cpp knows the 27B models by this
        scale = positive(config, "hidden_size") // positive(config, "num_attention_heads")
    require(config, "query_pre_attn_scalar", scale, 256, because=f"llama.cpp's {architecture} divides by the root of {scale}")
    return {**sizes(config), **attention(config), **rms_norm(config)}


def _gemma2(config: Config) -> dict[str, Value]:
    if not any(sliding_layers(config)):
        raise BadModel("config.json: no layer has a sliding window; llama.cpp's gemma2 always has them")
    return {
        **_common(config, "gemma2", layers_of_27b=46),
        **rope(config, ("default", "linear")),
        **sliding_window(config, period=2),
        "attn_logit_softcapping": number(config, "attn_logit_softcapping"),
        "final_logit_softcapping": number(config, "final_logit_softcapping"),
    }


def _gemma3(config: Config) -> dict[str, Value]:
    require(config, "attn_logit_softcapping", None, because="llama.cpp's gemma3 does not cap attention")
    values = {**_common(config, "gemma3", layers_of_27b=62), **rope(config, ("default", "linear"))}
    if config.get("final_logit_softcapping"):
        values["final_logit_softcapping"] = number(config, "final_logit_softcapping")
    if any(sliding_layers(config)):
        local = rope_parameters(config, "sliding_attention")
        if local["rope_type"] != "default":
            raise BadModel(f"config.json: rope type {local['rope_type']!r} in sliding layers; llama.cpp's gemma3 scales none there")
        values |= {**sliding_window(config, period=6), "rope.freq_base_swa": float(local["rope_theta"])}
    return values


def _one_more(*norms: str) -> dict[str, Form]:
    return dict.fromkeys(("model.norm.weight", *norms), ONE_MORE)


GEMMA2 = Family(
    "gemma2",
    ("gemma2",),
    _gemma2,
    layer=(*_NORMS, *ATTENTION, *GATED_MLP),
    head=None,
    forms=_one_more(*_NORMS),
)
GEMMA3 = Family(
    "gemma3",
    ("gemma3_text",),
    _gemma3,
    layer=(*_NORMS, *QK_NORMS, *ATTENTION, *GATED_MLP),
    forms=_one_more(*_NORMS, *QK_NORMS),
)
