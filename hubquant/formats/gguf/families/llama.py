"""Llama and the families that llama.cpp computes by nearly the same graph."""

from hubquant.errors import BadModel
from hubquant.formats.gguf.families.family import Family
from hubquant.formats.gguf.families.tensors import GATED_MLP_BIAS, LLAMA_LAYER, OUTPUT_BIAS, QK_NORMS, QKV_BIAS
from hubquant.formats.gguf.families.views import ROTATED_PAIRS
from hubquant.formats.gguf.hyperparameters import (
    Config,
    attention,
    check_activation,
    check_heads_fill_the_model,
    context_before_sliding,
    number,
    rms_norm,
    sizes,
)
from hubquant.formats.gguf.metadata import Value
from hubquant.formats.gguf.rope import rope

_SCALED = ("default", "linear", "yarn")


def _common(config: Config, architecture: str) -> dict[str, Value]:
    check_activation(config, architecture)
    return {**sizes(config), **context_before_sliding(config), **attention(config), **rms_norm(config)}


def _llama(config: Config) -> dict[str, Value]:
    return {**_common(config, "llama"), **rope(config, ("default", "llama3", "linear", "yarn"))}


def _qwen2(config: Config) -> dict[str, Value]:
    check_heads_fill_the_model(config, "qwen2")
    return {**_common(config, "qwen2"), **rope(config, _SCALED)}


def _qwen3(config: Config) -> dict[str, Value]:
    return {**_common(config, "qwen3"), **rope(config, _SCALED)}


def _smollm3(config: Config) -> dict[str, Value]:
    rotated = config.get("no_rope_layers")
    if rotated is not None and [bool(r) for r in rotated] != [bool((i + 1) % 4) for i in range(len(rotated))]:
        raise BadModel(f"config.json: no_rope_layers is {rotated}; llama.cpp's smollm3 leaves every fourth layer unrotated")
    return {**_common(config, "smollm3"), **rope(config, _SCALED)}


def _granite(config: Config) -> dict[str, Value]:
    scales: dict[str, Value] = {
        "attention.scale": number(config, "attention_multiplier", 1.0),
        "embedding_scale": number(config, "embedding_multiplier", 1.0),
        "residual_scale": number(config, "residual_multiplier", 1.0),
        "logit_scale": number(config, "logits_scaling", 1.0),
    }
    for key, value in scales.items():
        if not value:
            raise BadModel(f"config.json: {key} is 0, which llama.cpp's granite takes for 'not scaled'")
    return {**_common(config, "granite"), **rope(config, ("default", "llama3", "linear", "yarn")), **scales}


LLAMA = Family(
    "llama",
    ("llama", "mistral"),
    _llama,
    layer=LLAMA_LAYER,
    optional=(*QKV_BIAS, *OUTPUT_BIAS, *GATED_MLP_BIAS),
    forms=ROTATED_PAIRS,
)
QWEN2 = Family("qwen2", ("qwen2",), _qwen2, layer=LLAMA_LAYER, optional=QKV_BIAS)
QWEN3 = Family("qwen3", ("qwen3",), _qwen3, layer=(*LLAMA_LAYER, *QK_NORMS))
SMOLLM3 = Family("smollm3", ("smollm3",), _smollm3, layer=LLAMA_LAYER, forms=ROTATED_PAIRS)
GRANITE = Family(
    "granite",
    ("granite",),
    _granite,
    layer=LLAMA_LAYER,
    optional=(*QKV_BIAS, *OUTPUT_BIAS, *GATED_MLP_BIAS),
    forms=ROTATED_PAIRS,
)
