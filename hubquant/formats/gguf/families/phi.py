"""Phi 3 and 4: q, k and v in one matrix, gate and up in one, as llama.cpp has them too."""

from hubquant.formats.gguf.families.family import Family
from hubquant.formats.gguf.families.tensors import NORMS_BEFORE
from hubquant.formats.gguf.hyperparameters import (
    Config,
    attention,
    check_activation,
    check_heads_fill_the_model,
    context_before_sliding,
    rms_norm,
    sizes,
)
from hubquant.formats.gguf.metadata import Value
from hubquant.formats.gguf.rope import rope


def _phi3(config: Config) -> dict[str, Value]:
    check_activation(config, "phi3")
    check_heads_fill_the_model(config, "phi3")
    return {
        **sizes(config),
        **context_before_sliding(config),  # llama.cpp has switched Phi's sliding window off
        **attention(config),
        **rms_norm(config),
        **rope(config, ("default", "longrope"), partial=True),
    }


PHI3 = Family(
    "phi3",
    ("phi3",),
    _phi3,
    layer=(
        *NORMS_BEFORE,
        "self_attn.qkv_proj.weight",
        "self_attn.o_proj.weight",
        "mlp.gate_up_proj.weight",
        "mlp.down_proj.weight",
    ),
)
