"""Mixtures of experts whose graph in llama.cpp is a known one with experts in the place of the feed-forward block."""

from hubquant.formats.gguf.families.family import EXPERT, Family
from hubquant.formats.gguf.families.tensors import ATTENTION, NORMS_BEFORE, QK_NORMS
from hubquant.formats.gguf.families.views import ROTATED_PAIRS, stacked
from hubquant.formats.gguf.hyperparameters import (
    Config,
    attention,
    check_activation,
    context_before_sliding,
    positive,
    require,
    rms_norm,
    sizes,
)
from hubquant.formats.gguf.metadata import Value
from hubquant.formats.gguf.rope import rope

ROUTER = ("mlp.gate.weight",)
EXPERTS = {
    f"mlp.experts.{EXPERT}.gate_proj.weight": stacked("ffn_gate_exps.weight"),
    f"mlp.experts.{EXPERT}.up_proj.weight": stacked("ffn_up_exps.weight"),
    f"mlp.experts.{EXPERT}.down_proj.weight": stacked("ffn_down_exps.weight"),
}


def _common(config: Config, architecture: str) -> dict[str, Value]:
    check_activation(config, architecture)
    return {
        **sizes(config),
        **context_before_sliding(config),
        **attention(config),
        **rms_norm(config),
        "expert_used_count": positive(config, "num_experts_per_tok"),
    }


def _mixtral(config: Config) -> dict[str, Value]:
    values = {**_common(config, "llama"), **rope(config, ("default", "llama3", "linear", "yarn"))}
    return {**values, "expert_count": positive(config, "num_local_experts")}


def _qwen3moe(config: Config) -> dict[str, Value]:
    require(config, "norm_topk_prob", True, False, because="llama.cpp's qwen3moe makes the weights of the chosen experts sum to 1")
    require(config, "decoder_sparse_step", 1, 1, because="llama.cpp's qwen3moe has experts in every layer")
    require(config, "mlp_only_layers", [], [], because="llama.cpp's qwen3moe has experts in every layer")
    return {
        **_common(config, "qwen3moe"),
        **rope(config, ("default", "linear", "yarn")),
        # transformers' config calls it num_local_experts once it is complete
        "expert_count": positive(config, "num_experts", config.get("num_local_experts")),
        "expert_feed_forward_length": positive(config, "moe_intermediate_size"),
    }


MIXTRAL = Family(
    "llama",
    ("mixtral",),
    _mixtral,
    layer=(*NORMS_BEFORE, *ATTENTION, *ROUTER, *EXPERTS),
    forms={**ROTATED_PAIRS, **EXPERTS},
)
QWEN3MOE = Family(
    "qwen3moe",
    ("qwen3_moe",),
    _qwen3moe,
    layer=(*NORMS_BEFORE, *ATTENTION, *QK_NORMS, *ROUTER, *EXPERTS),
    forms=EXPERTS,
)
