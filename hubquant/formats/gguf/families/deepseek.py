"""DeepSeek V2 and V3: latent attention, leading dense layers, shared experts."""

from collections.abc import Sequence

from torch import Tensor

from hubquant.errors import BadModel
from hubquant.formats.gguf.families.family import Family, Form, Parameters, Place, Shape, whole_number
from hubquant.formats.gguf.families.moe import EXPERTS, ROUTER
from hubquant.formats.gguf.families.tensors import GATED_MLP, NORMS_BEFORE
from hubquant.formats.gguf.hyperparameters import Config, check_activation, number, positive, require, rms_norm, sizes
from hubquant.formats.gguf.metadata import Value
from hubquant.formats.gguf.rope import rope, rope_parameters

_LATENT = (
    *("self_attn.kv_a_proj_with_mqa.weight", "self_attn.kv_a_layernorm.weight", "self_attn.kv_b_proj.weight"),
    "self_attn.o_proj.weight",
)
_QUERY = ("self_attn.q_proj.weight", "self_attn.q_a_proj.weight", "self_attn.q_a_layernorm.weight", "self_attn.q_b_proj.weight")
_SHARED = tuple(name.replace("mlp.", "mlp.shared_experts.") for name in GATED_MLP)
_CHOICE_BIAS = "mlp.gate.e_score_correction_bias"
_SOFTMAX, _SIGMOID = 1, 2  # llama_expert_gating_func_type


def _deepseek2(config: Config) -> dict[str, Value]:
    check_activation(config, "deepseek2")
    latent, rotated = positive(config, "kv_lora_rank"), positive(config, "qk_rope_head_dim")
    version3 = config.get("model_type") == "deepseek_v3"
    return {
        **sizes(config),
        **rms_norm(config),
        # the keys and values in the cache are those of one head, as wide as what the projections of all heads are made from
        "attention.head_count": positive(config, "num_attention_heads"),
        "attention.head_count_kv": 1,
        "attention.key_length": latent + rotated,
        "attention.value_length": latent,
        "attention.key_length_mla": positive(config, "qk_nope_head_dim") + rotated,
        "attention.value_length_mla": positive(config, "v_head_dim"),
        "attention.kv_lora_rank": latent,
        "attention.q_lora_rank": 0 if config.get("q_lora_rank") is None else positive(config, "q_lora_rank"),
        **_rope(config, rotated),
        "leading_dense_block_count": _leading(config),
        # transformers' config calls it num_local_experts or num_experts once it is complete
        "expert_count": positive(config, "n_routed_experts", config.get("num_local_experts") or config.get("num_experts")),
        "expert_used_count": positive(config, "num_experts_per_tok"),
        "expert_shared_count": positive(config, "n_shared_experts"),
        "expert_feed_forward_length": positive(config, "moe_intermediate_size"),
        "expert_weights_scale": number(config, "routed_scaling_factor", 1.0),
        **(_sigmoid_choice(config) if version3 else _softmax_choice(config)),
    }


def _leading(config: Config) -> int:
    dense = config.get("first_k_dense_replace") or 0
    kinds = config.get("mlp_layer_types")
    if kinds is not None and list(kinds) != ["dense"] * dense + ["sparse"] * (len(kinds) - dense):
        raise BadModel("config.json: mlp_layer_types has dense layers behind sparse ones; llama.cpp's deepseek2 has them first")
    return int(dense)


def _sigmoid_choice(config: Config) -> dict[str, Value]:
    require(config, "rope_interleave", True, True, because="llama.cpp's deepseek2 rotates pairs of neighbours")
    values: dict[str, Value] = {"expert_gating_func": _SIGMOID, "expert_weights_norm": bool(config.get("norm_topk_prob"))}
    if (groups := positive(config, "n_group", 1)) > 1:
        values |= {"expert_group_count": groups, "expert_group_used_count": positive(config, "topk_group")}
    return values


def _softmax_choice(config: Config) -> dict[str, Value]:
    if config.get("topk_method") != "greedy" and positive(config, "n_group", 1) > 1:
        raise BadModel(
            f"config.json: topk_method is {config.get('topk_method')!r} with groups of experts, which DeepSeek V2 ranks by their "
            "best expert; llama.cpp's deepseek2 ranks them by their best two"
        )
    require(config, "norm_topk_prob", False, False, because="DeepSeek V2 in transformers does not do that")
    return {"expert_gating_func": _SOFTMAX, "expert_weights_norm": False}


def _rope(config: Config, rotated: int) -> dict[str, Value]:
    stated = rope_parameters(config)
    values = rope({**config, "head_dim": rotated}, ("default", "yarn"))
    if stated["rope_type"] == "yarn":
        scale = stated.get("mscale_all_dim")
        if not scale or stated.get("mscale") != scale or stated.get("attention_factor") is not None:
            raise BadModel(
                f"config.json: YaRN with mscale {stated.get('mscale')} and mscale_all_dim {scale}; llama.cpp's deepseek2 computes "
                "those that are equal"
            )
        # a tenth of it, by llama.cpp's convention for this architecture
        values["rope.scaling.yarn_log_multiplier"] = 0.1 * float(scale)
    return values


def _heads(tensor: Tensor, parameters: Parameters) -> Tensor:
    return tensor.unflatten(0, (whole_number(parameters, "attention.head_count"), -1))


def _unrotated(parameters: Parameters) -> int:
    return whole_number(parameters, "attention.key_length_mla") - whole_number(parameters, "rope.dimension_count")


def _keys(tensor: Tensor, parameters: Parameters) -> Tensor:
    """[heads, latent, unrotated]: llama.cpp multiplies the query with it, so it is stored the other way round."""
    return _heads(tensor, parameters)[:, : _unrotated(parameters)].transpose(1, 2)


def _values(tensor: Tensor, parameters: Parameters) -> Tensor:
    """[heads, value, latent]"""
    return _heads(tensor, parameters)[:, _unrotated(parameters) :]


def _keys_and_values(stored: Sequence[Shape], _parameters: Parameters) -> Shape:
    (heads, latent, unrotated), (_, value, _) = stored
    return (heads * (unrotated + value), latent)


_KV_B = Form(
    (Place(_keys, "attn_k_b.weight", dims=3, reads_input=False), Place(_values, "attn_v_b.weight", dims=3)), _keys_and_values
)

DEEPSEEK2 = Family(
    "deepseek2",
    ("deepseek_v2", "deepseek_v3"),
    _deepseek2,
    layer=(*NORMS_BEFORE, *_LATENT),
    optional=(*_QUERY, *GATED_MLP, *ROUTER, _CHOICE_BIAS, *EXPERTS, *_SHARED),
    names={_CHOICE_BIAS: "exp_probs_b.bias"},
    forms={**EXPERTS, "self_attn.kv_b_proj.weight": _KV_B},
)
