"""gpt-oss: experts with biases and a gate of its own, attention sinks, every other layer sees a sliding window."""

from hubquant.formats.gguf.families.family import EXPERT, Family
from hubquant.formats.gguf.families.moe import EXPERTS
from hubquant.formats.gguf.families.tensors import ATTENTION, NORMS_BEFORE, OUTPUT_BIAS, QKV_BIAS
from hubquant.formats.gguf.families.views import stacked
from hubquant.formats.gguf.hyperparameters import Config, attention, positive, require, rms_norm, sizes, sliding_window
from hubquant.formats.gguf.metadata import Value
from hubquant.formats.gguf.rope import rope

_BIASES = {
    f"mlp.experts.{EXPERT}.gate_proj.bias": stacked("ffn_gate_exps.bias", dims=2),
    f"mlp.experts.{EXPERT}.up_proj.bias": stacked("ffn_up_exps.bias", dims=2),
    f"mlp.experts.{EXPERT}.down_proj.bias": stacked("ffn_down_exps.bias", dims=2),
}


def _gpt_oss(config: Config) -> dict[str, Value]:
    require(config, "swiglu_alpha", 1.702, 1.702, because="llama.cpp's gate of gpt-oss has it built in")
    require(config, "swiglu_limit", 7.0, 7.0, because="llama.cpp's gate of gpt-oss has it built in")
    require(config, "tie_word_embeddings", False, False, because="llama.cpp's gpt-oss wants an output matrix")
    # YaRN's truncate is False in the published models; llama.cpp rounds the borders of its ramp to whole dimensions all the same
    return {
        **sizes(config),
        **attention(config),
        **rms_norm(config),
        **rope(config, ("default", "linear", "yarn")),
        **sliding_window(config, 2),
        "expert_count": positive(config, "num_local_experts"),
        "expert_used_count": positive(config, "num_experts_per_tok"),
        "expert_feed_forward_length": positive(config, "intermediate_size"),
    }


GPT_OSS = Family(
    "gpt-oss",
    ("gpt_oss",),
    _gpt_oss,
    layer=(
        *(*NORMS_BEFORE, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, "self_attn.sinks"),
        *("mlp.router.weight", "mlp.router.bias", *EXPERTS, *_BIASES),
    ),
    names={"self_attn.sinks": "attn_sinks.weight"},
    forms={**EXPERTS, **_BIASES},
)
