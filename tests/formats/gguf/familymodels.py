"""Small random models of every family: what llama.cpp must compute as transformers does."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from hubquant.formats.gguf.families import family_of_model
from hubquant.formats.gguf.hyperparameters import completed
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.decoder import Decoder, read_config

_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# rows of whole blocks of 256, and heads as wide as above
_WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "initializer_range": 0.05,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
    "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
}
_S, _F = "sliding_attention", "full_attention"
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 48}
_LATENT = {
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 64},
    **{"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16},
    **{"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "n_shared_experts": 2},
    **{"first_k_dense_replace": 1, "routed_scaling_factor": 1.5},
}
_DEEPSEEK2 = {"model_type": "deepseek_v2", **_LATENT, "q_lora_rank": None, "topk_method": "greedy", "norm_topk_prob": False}
_DEEPSEEK3 = {"model_type": "deepseek_v3", **_LATENT, "q_lora_rank": 32, "n_group": 2, "topk_group": 1}
_GPT_OSS = {
    **{"model_type": "gpt_oss", "head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 48},
    "tie_word_embeddings": False,
}
# config.json of each; what follows a colon is a variation of the family. Texts are longer than the sliding windows.
RANDOM_MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "llama:biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama:wide-heads": {"model_type": "llama", "head_dim": 32, "tie_word_embeddings": True},
    "llama:rope-llama3": {"model_type": "llama", "rope_parameters": _LLAMA3},
    "llama:rope-linear": {"model_type": "llama", "rope_parameters": _LINEAR},
    "mistral": {"model_type": "mistral", "sliding_window": None, "rms_norm_eps": 1e-5},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2:rope-yarn": {"model_type": "qwen2", "rope_parameters": _YARN},
    "qwen2:rope-yarn-attention": {"model_type": "qwen2", "rope_parameters": {**_YARN, "attention_factor": 1.3}},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "qwen3:as-published": {"model_type": "qwen3", "head_dim": 128},
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 4},
    "granite": {
        "model_type": "granite",
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
    "gemma2": {"model_type": "gemma2", **_GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0},
    "gemma2:pattern": {"model_type": "gemma2", **_GEMMA, "num_hidden_layers": 3, "layer_types": [_F, _S, _S]},
    "gemma3": {"model_type": "gemma3_text", **_GEMMA, "num_hidden_layers": 6},
    "gemma3:pattern": {
        "model_type": "gemma3_text",
        **_GEMMA,
        "layer_types": [_S, _F],
        "rope_parameters": {_S: {"rope_type": "default", "rope_theta": 10000.0}, _F: {**_LINEAR, "rope_theta": 1e6}},
        "final_logit_softcapping": 8.0,
        "tie_word_embeddings": False,
    },
    "gemma2:as-published": {"model_type": "gemma2", "head_dim": 256, "sliding_window": 48},
    "gemma3:as-published": {"model_type": "gemma3_text", "head_dim": 256, "sliding_window": 48, "num_hidden_layers": 6},
    "phi3": {"model_type": "phi3", "rope_parameters": _PARTIAL},
    "phi3:as-published": {"model_type": "phi3"},
    "phi3:longrope": {"model_type": "phi3", "rope_parameters": _LONG, "original_max_position_embeddings": 64},
    "olmo2": {"model_type": "olmo2"},
    "cohere2": {"model_type": "cohere2", "num_hidden_layers": 4, "sliding_window": 48, "logit_scale": 0.5},
    "cohere2:pattern": {"model_type": "cohere2", "sliding_window": 48, "layer_types": [_F, _S], "logit_scale": 0.5},
    "gpt2": {"model_type": "gpt2"},
    "gpt2:as-published": {"model_type": "gpt2", "n_positions": 1024, "max_position_embeddings": 1024},
    "gpt2:untied": {"model_type": "gpt2", "n_inner": 96, "tie_word_embeddings": False},
    "gptneox": {"model_type": "gpt_neox"},
    "gptneox:one-after-the-other": {"model_type": "gpt_neox", "use_parallel_residual": False, "rope_parameters": _PARTIAL},
    "falcon": {"model_type": "falcon"},
    "falcon:no-sharing": {"model_type": "falcon", "multi_query": False, "ffn_hidden_size": 96, "tie_word_embeddings": False},
    "falcon:groups": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon:groups-one-norm": {
        **{"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 4},
        "num_ln_in_parallel_attn": 1,
    },
    "starcoder2": {"model_type": "starcoder2"},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3moe": {
        **{"model_type": "qwen3_moe", "head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256},
        "norm_topk_prob": True,
    },
    "deepseek2": _DEEPSEEK2,
    "deepseek2:yarn": {**_DEEPSEEK2, "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}},
    "deepseek3": _DEEPSEEK3,
    "deepseek3:yarn": {**_DEEPSEEK3, "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "gpt-oss": {**_GPT_OSS, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "gpt-oss:yarn": {**_GPT_OSS, "layer_types": [_F, _S], "rope_parameters": _YARN},
}
# config.json of a published Llama 3.2, and its rope scaling: for what is said of a model, not for running one
LLAMA_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def save_random_model(name: str, wide: bool, folder: Path) -> None:
    """The checkpoint, float32, without a tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**_SHAPE, **(_WIDE if wide else {}), **RANDOM_MODELS[name]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases start at 0 and norms at a constant: nothing would be seen of them
            torch.nn.init.normal_(parameter, float(parameter.detach().mean()), 0.3)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            torch.nn.init.normal_(buffer, std=0.3)
    model.save_pretrained(folder)


def weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by the name of its module, experts one by one."""
    decoder = Decoder(read_config(folder), Checkpoint(folder))
    return {name: decoder.source.tensor(name) for name in decoder.shapes()}


def hyperparameters(model_type: str, **changes: Any) -> dict[str, Any]:
    """What a file says of a small model whose config.json has these changes."""
    shape = {**_SHAPE, "max_position_embeddings": 4096, "num_hidden_layers": 8, "vocab_size": 128}
    config = completed({**shape, "model_type": model_type, **changes})
    return dict(family_of_model(config).hyperparameters(config))
