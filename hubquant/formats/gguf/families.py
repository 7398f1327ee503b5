"""The model families that can be written as GGUF: one row each, with llama.cpp's names for their tensors."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hubquant.errors import BadModel

_MODEL_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}

_LAYER_TENSORS = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}

_QKV_BIAS = {
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
}

_OTHER_BIAS = {
    "self_attn.o_proj.bias": "attn_output.bias",
    "mlp.gate_proj.bias": "ffn_gate.bias",
    "mlp.up_proj.bias": "ffn_up.bias",
    "mlp.down_proj.bias": "ffn_down.bias",
}

_QK_NORMS = {"self_attn.q_norm.weight": "attn_q_norm.weight", "self_attn.k_norm.weight": "attn_k_norm.weight"}

# Buffers that old checkpoints carry; llama.cpp computes them.
_DERIVED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "self_attn.bias", "self_attn.masked_bias")

# Written by us, read by llama.cpp alone: the frequencies of llama3's rope scaling.
ROPE_FREQS = "rope_freqs.weight"

_HF_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_GGUF_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Family:
    """`model_types` are values of config.json's model_type; `layer_tensors` and `optional_tensors` map a layer's Hugging
    Face names to GGUF names. `interleaved_rope`: llama.cpp rotates dimensions (2i, 2i+1) of a head together where
    transformers rotates (i, i + d/2), so the rows of q and k change places."""

    architecture: str
    model_types: tuple[str, ...]
    interleaved_rope: bool
    layer_tensors: Mapping[str, str] = field(default_factory=lambda: _LAYER_TENSORS)
    optional_tensors: Mapping[str, str] = field(default_factory=dict)

    def gguf_name(self, hf_name: str) -> str | None:
        """None for a buffer that is not stored. Raises BadModel for a tensor that llama.cpp has no place for."""
        if hf_name.endswith(_DERIVED):
            return None
        layer = _HF_LAYER.fullmatch(hf_name)
        known = {**self.layer_tensors, **self.optional_tensors} if layer else _MODEL_TENSORS
        found = known.get(layer[2] if layer else hf_name)
        if found is None:
            raise BadModel(f"tensor {hf_name} has no place in a GGUF file of architecture {self.architecture}")
        return f"blk.{layer[1]}.{found}" if layer else found

    def hf_name(self, gguf_name: str) -> str:
        """The inverse of gguf_name. Raises BadModel for a name that it cannot give."""
        layer = _GGUF_LAYER.fullmatch(gguf_name)
        known = {**self.layer_tensors, **self.optional_tensors} if layer else _MODEL_TENSORS
        stored = layer[2] if layer else gguf_name
        for hf, gguf in known.items():
            if gguf == stored:
                return f"model.layers.{layer[1]}.{hf}" if layer else hf
        raise BadModel(f"GGUF tensor {gguf_name!r} is not one of architecture {self.architecture}")

    def check_complete(self, gguf_names: Iterable[str], n_layer: int) -> None:
        """Raises BadModel naming the first tensor that llama.cpp needs and the model lacks, or a layer too many."""
        present = set(gguf_names)
        needed = ["token_embd.weight", "output_norm.weight"]
        needed += [f"blk.{i}.{name}" for i in range(n_layer) for name in self.layer_tensors.values()]
        for name in needed:
            if name not in present:
                raise BadModel(f"the model has no tensor {self.hf_name(name)}; is the checkpoint complete?")
        for name in present:
            layer = _GGUF_LAYER.fullmatch(name)
            if layer and int(layer[1]) >= n_layer:
                raise BadModel(f"tensor {self.hf_name(name)} belongs to a layer beyond num_hidden_layers = {n_layer}")

    def stored_rows(self, gguf_name: str, shape: tuple[int, ...], n_head: int, n_head_kv: int) -> Tensor | None:
        """[out] for each stored row the row of the Hugging Face tensor, or None if the order is the same."""
        heads = {"attn_q": n_head, "attn_k": n_head_kv}.get(gguf_name.split(".")[-2])
        if heads is None or not self.interleaved_rope:
            return None
        if shape[0] % (2 * heads):
            raise BadModel(f"tensor {self.hf_name(gguf_name)} has {shape[0]} rows, which {heads} heads cannot share evenly")
        return torch.arange(shape[0]).view(heads, 2, -1).transpose(1, 2).reshape(-1)


FAMILIES: tuple[Family, ...] = (
    Family("llama", ("llama", "mistral"), interleaved_rope=True, optional_tensors={**_QKV_BIAS, **_OTHER_BIAS}),
    Family("qwen2", ("qwen2",), interleaved_rope=False, optional_tensors=_QKV_BIAS),
    Family("qwen3", ("qwen3",), interleaved_rope=False, layer_tensors={**_LAYER_TENSORS, **_QK_NORMS}),
)


def family_of_model(config: Mapping[str, Any]) -> Family:
    """The row for a config.json. Raises BadModel naming the architecture and the known ones."""
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    name = (config.get("architectures") or ["?"])[0]
    raise BadModel(f"architecture {name} (model_type {model_type!r}) cannot be written as GGUF yet; known: {known}")


def family_of_file(architecture: str) -> Family:
    """The row for a GGUF file's general.architecture. Raises BadModel naming the known ones."""
    for family in FAMILIES:
        if family.architecture == architecture:
            return family
    known = ", ".join(family.architecture for family in FAMILIES)
    raise BadModel(f"GGUF architecture {architecture!r} cannot be read; known: {known}")
