"""Rotary positions in GGUF: keys rope.*, and the tensors of factors by which frequencies are divided."""

import math
from typing import Any

import torch
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.formats.gguf.hyperparameters import Config, head_size, positive
from hubquant.formats.gguf.metadata import Value

ROPE_FREQS, LONG_FACTORS, SHORT_FACTORS = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
# read by llama.cpp alone
ROPE_TENSORS = (ROPE_FREQS, LONG_FACTORS, SHORT_FACTORS)


def rope_parameters(config: Config, layer_type: str = "full_attention") -> dict[str, Any]:
    """transformers 5 writes rope_parameters with rope_theta inside, some models one for each type of layer; 4 wrote
    rope_scaling beside rope_theta."""
    stated: dict[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    parameters: dict[str, Any] = dict(stated.get(layer_type) or stated)
    parameters.setdefault("rope_type", parameters.get("type") or "default")
    parameters.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    parameters.setdefault("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    return parameters


def rope(config: Config, known: tuple[str, ...], partial: bool = False) -> dict[str, Value]:
    """`known`: the rope types of which llama.cpp's graph computes the same; `partial`: it can leave a part of a head as it is."""
    parameters = rope_parameters(config)
    kind, share, head = parameters["rope_type"], float(parameters["partial_rotary_factor"]), head_size(config)
    if kind not in known:
        raise BadModel(f"config.json: rope type {kind!r} cannot be written as GGUF; known: {', '.join(known)}")
    if share != 1 and not partial:
        raise BadModel(f"config.json: partial_rotary_factor is {share}; llama.cpp rotates whole heads in this family")
    values: dict[str, Value] = {
        "rope.dimension_count": int(head * share),
        "rope.freq_base": float(parameters["rope_theta"]),
    }
    if kind in ("linear", "yarn"):
        values["rope.scaling.type"] = kind
        values["rope.scaling.factor"] = float(parameters["factor"])
    if kind == "yarn":
        values |= _yarn(config, parameters)
    if kind == "longrope":
        values |= _longrope(config, parameters)
    return values


def _yarn(config: Config, rope: dict[str, Any]) -> dict[str, Value]:
    original = rope.get("original_max_position_embeddings") or positive(config, "max_position_embeddings")
    values: dict[str, Value] = {
        "rope.scaling.original_context_length": int(original),
        "rope.scaling.yarn_beta_fast": float(rope.get("beta_fast") or 32.0),
        "rope.scaling.yarn_beta_slow": float(rope.get("beta_slow") or 1.0),
    }
    if rope.get("attention_factor") is not None:
        # llama.cpp multiplies by this what YaRN's paper gives; transformers replaces it.
        values["rope.scaling.attn_factor"] = float(rope["attention_factor"]) / (0.1 * math.log(rope["factor"]) + 1)
    return values


def _longrope(config: Config, rope: dict[str, Any]) -> dict[str, Value]:
    """llama.cpp takes the long factors if its context is longer than the original one, whatever the text's length."""
    longest = positive(config, "max_position_embeddings")
    original = int(rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or longest)
    scale = longest / original
    attention = rope.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": float(attention)}


def rope_factors(config: Config) -> dict[str, Tensor]:
    """float32 [rotated / 2] each: what frequencies are divided by, under llama3's rope scaling and longrope."""
    rope = rope_parameters(config)
    if rope["rope_type"] == "longrope":
        return {LONG_FACTORS: torch.tensor(rope["long_factor"]).float(), SHORT_FACTORS: torch.tensor(rope["short_factor"]).float()}
    return {ROPE_FREQS: _llama3(rope, head_size(config))} if rope["rope_type"] == "llama3" else {}


def _llama3(rope: dict[str, Any], head: int) -> Tensor:
    """Low frequencies are divided by `factor`, high ones kept, those between interpolated (transformers,
    modeling_rope_utils._compute_llama3_parameters)."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(rope["original_max_position_embeddings"])
    frequencies = float(rope["rope_theta"]) ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
    turns = context * frequencies / (2 * math.pi)  # how often each dimension turns within the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - kept) / factor + kept)).float()
