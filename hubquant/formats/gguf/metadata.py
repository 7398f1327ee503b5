"""The key-value part of a GGUF file: what the model is (general.*), and its hyperparameters ({architecture}.*)."""

import math
from collections.abc import Mapping
from typing import Any

import gguf
import torch
from torch import Tensor

from hubquant import __version__
from hubquant.errors import BadModel
from hubquant.formats.gguf.families import Family
from hubquant.formats.gguf.imatrix import ImatrixInfo
from hubquant.formats.gguf.mixtures import Mixture
from hubquant.recipe import Frozen

# int is stored as UINT32, float as FLOAT32; a list takes the type of its first element (int: INT32).
Value = bool | int | float | str | list[str] | list[int] | list[float]

QUANTIZATION_VERSION = 2  # of ggml's block layouts


class Provenance(Frozen):
    """Where the weights come from and who quantized them. Empty fields are left out of the file.

    `url` and `repo_url` are the web addresses of the base and of the quantized repo. A base with a `repo_id` and no `url` is
    taken to be on huggingface.co; a base that is only a folder has neither.
    """

    name: str
    repo_id: str = ""
    revision: str = ""  # 40 hex digits
    url: str = ""
    repo_url: str = ""
    license: str = ""
    license_name: str = ""
    license_link: str = ""
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    quantized_by: str = ""


def general(
    provenance: Provenance, mixture: Mixture, imatrix: ImatrixInfo | None, parameters: int, entries: int
) -> dict[str, Value]:
    """general.*, quantize.imatrix.* and hubquant.*. `entries`: matrices of which the importance is known."""
    model_id = provenance.repo_id or provenance.name
    name, organization, basename, finetune, version, size = gguf.Metadata.get_model_id_components(model_id, parameters)
    url = provenance.url or (f"https://huggingface.co/{provenance.repo_id}" if provenance.repo_id else "")
    values: dict[str, Value] = {
        "general.type": "model",
        "general.name": provenance.name,
        "general.basename": basename or name,
        "general.finetune": finetune or "",
        "general.version": version or "",
        "general.size_label": size or gguf.size_label(parameters, parameters, 0, 0),
        "general.quantized_by": provenance.quantized_by,
        "general.license": provenance.license,
        "general.license.name": provenance.license_name,
        "general.license.link": provenance.license_link,
        "general.repo_url": provenance.repo_url,
        "general.source.repo_url": url,
        "general.source.huggingface.repository": provenance.repo_id,
        "general.tags": list(provenance.tags),
        "general.languages": list(provenance.languages),
        "general.file_type": mixture.file_type,
        "general.quantization_version": QUANTIZATION_VERSION,
        "hubquant.version": __version__,
        "hubquant.source_sha": provenance.revision,
    }
    if provenance.repo_id:
        values["general.base_model.count"] = 1
        values["general.base_model.0.name"] = provenance.name
        values["general.base_model.0.organization"] = organization or ""
        values["general.base_model.0.repo_url"] = url
    if imatrix is not None:
        values["quantize.imatrix.file"] = imatrix.file
        values["quantize.imatrix.dataset"] = imatrix.dataset
        values["quantize.imatrix.entries_count"] = entries
        values["quantize.imatrix.chunks_count"] = imatrix.chunks
    return {key: value for key, value in values.items() if value not in ("", [])}


def positive(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number of config.json. Raises BadModel naming the key and what stands there."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        raise BadModel(f"config.json: {key} is {value!r}, expected a positive whole number")
    return value


def head_size(config: Mapping[str, Any]) -> int:
    return positive(config, "head_dim", positive(config, "hidden_size") // positive(config, "num_attention_heads"))


def hyperparameters(config: Mapping[str, Any], family: Family, n_vocab: int) -> dict[str, Value]:
    """What llama.cpp needs to build the graph. Raises BadModel where its graph of the family would compute something else."""
    heads = positive(config, "num_attention_heads")
    head = head_size(config)
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise BadModel(f"config.json: hidden_act is {activation!r}; llama.cpp's {family.architecture} computes silu")
    if family.architecture == "qwen2" and heads * head != positive(config, "hidden_size"):
        raise BadModel(f"config.json: {heads} heads of {head} are not hidden_size; llama.cpp's qwen2 has no such attention")
    values: dict[str, Value] = {
        "context_length": _context(config),
        "embedding_length": positive(config, "hidden_size"),
        "block_count": positive(config, "num_hidden_layers"),
        "feed_forward_length": positive(config, "intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": positive(config, "num_key_value_heads", heads),
        "attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "vocab_size": n_vocab,
        **_rope(config),
    }
    return {f"{family.architecture}.{key}": value for key, value in values.items()}


def _context(config: Mapping[str, Any]) -> int:
    """The longest text that llama.cpp treats as the model does: its graphs of these families have no sliding window."""
    longest = positive(config, "max_position_embeddings")
    layers = config.get("layer_types")
    slides = config.get("use_sliding_window", True) and (layers is None or "sliding_attention" in layers)
    if config.get("sliding_window") is None or not slides:
        return longest
    return min(longest, positive(config, "sliding_window"))


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 writes rope_parameters with rope_theta inside, 4 wrote rope_scaling beside rope_theta."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    parameters.setdefault("rope_type", parameters.get("type") or "default")
    parameters.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise BadModel(f"config.json: partial_rotary_factor is {partial}; llama.cpp rotates whole heads in these families")
    return parameters


def _rope(config: Mapping[str, Any]) -> dict[str, Value]:
    rope = _rope_parameters(config)
    kind = rope["rope_type"]
    values: dict[str, Value] = {"rope.freq_base": float(rope["rope_theta"])}
    if kind not in ("default", "llama3", "linear", "yarn"):
        raise BadModel(f"config.json: rope type {kind!r} cannot be written as GGUF; known: default, llama3, linear, yarn")
    if kind in ("linear", "yarn"):
        values["rope.scaling.type"] = kind
        values["rope.scaling.factor"] = float(rope["factor"])
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings") or positive(config, "max_position_embeddings")
        values["rope.scaling.original_context_length"] = int(original)
        values["rope.scaling.yarn_beta_fast"] = float(rope.get("beta_fast") or 32.0)
        values["rope.scaling.yarn_beta_slow"] = float(rope.get("beta_slow") or 1.0)
        if rope.get("attention_factor") is not None:
            # llama.cpp multiplies by this what YaRN's paper gives; transformers replaces it.
            values["rope.scaling.attn_factor"] = float(rope["attention_factor"]) / (0.1 * math.log(rope["factor"]) + 1)
    return values


def rope_factors(config: Mapping[str, Any]) -> Tensor | None:
    """float32 [head_dim / 2]: what llama3's rope scaling divides each frequency by; None for the other rope types.

    Low frequencies are divided by `factor`, high ones kept, those between interpolated (transformers,
    modeling_rope_utils._compute_llama3_parameters).
    """
    rope = _rope_parameters(config)
    if rope["rope_type"] != "llama3":
        return None
    head = head_size(config)
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(rope["original_max_position_embeddings"])
    frequencies = float(rope["rope_theta"]) ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
    turns = context * frequencies / (2 * math.pi)  # how often each dimension turns within the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - kept) / factor + kept)).float()
