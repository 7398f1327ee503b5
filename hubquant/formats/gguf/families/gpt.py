"""GPT-2 and what came from it: GPT-NeoX, Falcon, StarCoder 2. LayerNorms, biases, no gate, fused queries, keys and values."""

from dataclasses import replace

from torch import Tensor

from hubquant.errors import BadModel
from hubquant.formats.gguf.families.family import Family, Form, Parameters, Place, View, whole_number
from hubquant.formats.gguf.families.tensors import ATTENTION, NORMS_BEFORE, OUTPUT_BIAS, QKV_BIAS
from hubquant.formats.gguf.hyperparameters import (
    Config,
    attention,
    check_activation,
    check_heads_fill_the_model,
    context_before_sliding,
    number,
    positive,
    require,
    sizes,
)
from hubquant.formats.gguf.metadata import Value
from hubquant.formats.gguf.rope import rope

# llama.cpp has one GELU, by tanh; the exact one that GPT-NeoX and Falcon were trained with is within 5e-4 of it
_GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
_SCALED = ("default", "linear", "yarn")


def _both(*modules: str) -> tuple[str, ...]:
    return tuple(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))


def _gpt2(config: Config) -> dict[str, Value]:
    for key, wanted in {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}.items():
        require(config, key, wanted, wanted, because="llama.cpp's gpt2 has it otherwise")
    width = positive(config, "n_embd")
    named = {
        "hidden_size": width,
        "intermediate_size": positive(config, "n_inner", 4 * width),
        "num_hidden_layers": config.get("n_layer"),
        "num_attention_heads": config.get("n_head"),
        "max_position_embeddings": config.get("n_positions"),
        "hidden_act": config.get("activation_function"),
        "vocab_size": config.get("vocab_size"),
    }
    check_activation(named, "gpt2", _GELU)
    return {**sizes(named), **attention(named), "attention.layer_norm_epsilon": number(config, "layer_norm_epsilon", 1e-5)}


def _gptneox(config: Config) -> dict[str, Value]:
    check_activation(config, "gptneox", _GELU)
    require(config, "attention_bias", True, True, because="llama.cpp's gptneox needs the biases")
    require(config, "tie_word_embeddings", False, False, because="llama.cpp's gptneox needs an output matrix of its own")
    heads = positive(config, "num_attention_heads")
    return {
        **sizes(config),
        **attention({**config, "num_key_value_heads": heads}),  # nothing is shared in this family, whatever the key says
        "attention.layer_norm_epsilon": number(config, "layer_norm_eps", 1e-5),
        "use_parallel_residual": bool(config.get("use_parallel_residual", True)),
        **rope(config, _SCALED, partial=True),
    }


def _falcon(config: Config) -> dict[str, Value]:
    newer = bool(config.get("new_decoder_architecture"))
    require(config, "alibi", False, False, because="llama.cpp's falcon rotates")
    require(config, "bias", False, False, because="llama.cpp's falcon has no biases")
    if not newer:
        require(config, "parallel_attn", True, because="llama.cpp's falcon has attention and feed-forward side by side")
    heads = positive(config, "num_attention_heads")
    one_for_all = bool(config.get("multi_query")) and not newer
    named = {
        **config,
        "intermediate_size": config.get("ffn_hidden_size"),
        "num_key_value_heads": 1 if one_for_all else positive(config, "num_kv_heads", heads),
        "hidden_act": config.get("activation"),
    }
    check_activation(named, "falcon", _GELU)
    return {
        **sizes(named),
        **attention(named),
        "attention.layer_norm_epsilon": number(config, "layer_norm_epsilon", 1e-5),
        "tensor_data_layout": "jploski",  # queries, keys and values in this order
        **rope(named, _SCALED),
    }


def _starcoder2(config: Config) -> dict[str, Value]:
    check_activation(config, "starcoder2", _GELU)
    check_heads_fill_the_model(config, "starcoder2")
    require(config, "use_bias", True, True, because="llama.cpp's starcoder2 needs the biases")
    return {
        **sizes(config),
        **context_before_sliding(config),
        **attention(config),
        "attention.layer_norm_epsilon": number(config, "norm_epsilon", 1e-5),
        **rope(config, _SCALED),
    }


def _has_two_norms(config: Config) -> bool:
    return bool(config.get("new_decoder_architecture")) and config.get("num_ln_in_parallel_attn") in (None, 2)


def _by_head(tensor: Tensor, parameters: Parameters) -> Tensor:
    """GPT-NeoX keeps query, key and value of each head together; llama.cpp wants all queries first."""
    heads = whole_number(parameters, "attention.head_count")
    if tensor.shape[0] % (3 * heads):
        raise BadModel(f"{tensor.shape[0]} rows, which {heads} heads cannot share evenly")
    return tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1)


def _of_groups(part: slice) -> View:
    """Falcon keeps with each key and value the queries that share them, before them."""

    def view(tensor: Tensor, parameters: Parameters) -> Tensor:
        heads, shared = whole_number(parameters, "attention.head_count"), whole_number(parameters, "attention.head_count_kv")
        group = heads // shared + 2
        if heads % shared or tensor.shape[0] % (shared * group):
            raise BadModel(f"{tensor.shape[0]} rows, which {heads} heads and {shared} of keys and values cannot share evenly")
        return tensor.unflatten(0, (shared, group, -1))[:, part]

    return view


_FUSED = Form((Place(_by_head),))
_GROUPED = Form(tuple(Place(_of_groups(part), index=i) for i, part in enumerate((slice(-2), slice(-2, -1), slice(-1, None)))))

_FALCON_MATRICES = (
    "self_attention.query_key_value.weight", "self_attention.dense.weight",
    "mlp.dense_h_to_4h.weight", "mlp.dense_4h_to_h.weight",
)  # fmt: skip

# The layers' matrices are [out, in] here, whatever a checkpoint holds (model/conv1d.py)
GPT2 = Family(
    "gpt2",
    ("gpt2",),
    _gpt2,
    layer=_both("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"),
    outside=("transformer.wte.weight", "transformer.wpe.weight", *_both("transformer.ln_f")),
    prefix="transformer.h.",
    extra=lambda _: {},
)
GPTNEOX = Family(
    "gptneox",
    ("gpt_neox",),
    _gptneox,
    layer=_both(
        "input_layernorm", "attention.query_key_value", "attention.dense",
        "post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h",
    ),
    outside=("gpt_neox.embed_in.weight", *_both("gpt_neox.final_layer_norm")),
    prefix="gpt_neox.layers.",
    forms={f"attention.query_key_value.{kind}": _FUSED for kind in ("weight", "bias")},
)  # fmt: skip
FALCON = Family(
    "falcon",
    ("falcon",),
    _falcon,
    layer=(*_both("input_layernorm"), *_FALCON_MATRICES),
    outside=("transformer.word_embeddings.weight", *_both("transformer.ln_f")),
    prefix="transformer.h.",
    forms={"self_attention.query_key_value.weight": _GROUPED},
    applies=lambda config: not _has_two_norms(config),
)
# 40B and 180B: a norm for each half of a block
FALCON_TWO_NORMS = replace(FALCON, layer=(*_both("ln_mlp", "ln_attn"), *_FALCON_MATRICES), applies=_has_two_norms)
STARCODER2 = Family(
    "starcoder2",
    ("starcoder2",),
    _starcoder2,
    layer=(
        *NORMS_BEFORE, "input_layernorm.bias", "post_attention_layernorm.bias",
        *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *_both("mlp.c_fc", "mlp.c_proj"),
    ),
    outside=("model.embed_tokens.weight", *_both("model.norm")),
)  # fmt: skip
