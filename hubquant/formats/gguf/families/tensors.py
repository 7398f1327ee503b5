"""Names of tensors below a layer that many families share, in transformers' words."""

ATTENTION = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight")
QKV_BIAS = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")
OUTPUT_BIAS = ("self_attn.o_proj.bias",)
QK_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
GATED_MLP = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
GATED_MLP_BIAS = ("mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias")
NORMS_BEFORE = ("input_layernorm.weight", "post_attention_layernorm.weight")
NORMS_AFTER = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")

LLAMA_LAYER = (*NORMS_BEFORE, *ATTENTION, *GATED_MLP)
