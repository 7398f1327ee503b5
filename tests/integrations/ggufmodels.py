"""Small GGUF files of the architectures that transformers keeps packed, written with the package gguf, in blocks by libgguf."""

from collections.abc import Iterator
from pathlib import Path

import gguf
import libgguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import WeightConverter, rename_source_key
from transformers.integrations.gguf import get_gguf_config, read_gguf_metadata
from transformers.integrations.gguf.utils import get_gguf_conversion_mapping

HIDDEN, VOCABULARY = 256, 96
NORMS = ("attn_norm", "post_attention_norm")
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm")
DELTA = ("attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta", "ssm_conv1d", "ssm_norm", "ssm_out", "ssm_a", "ssm_dt.bias")
DENSE = ("ffn_gate", "ffn_up", "ffn_down")
EXPERTS = (
    "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_inp_shexp", "ffn_gate_shexp", "ffn_up_shexp",
    "ffn_down_shexp",
)  # fmt: skip
CONVOLUTION = ("shortconv.in_proj", "shortconv.conv", "shortconv.out_proj")
LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "lfm2": (("attn_norm", "ffn_norm", *CONVOLUTION, *DENSE), ("attn_norm", "ffn_norm", *ATTENTION, *DENSE)),
    "qwen35": ((*NORMS, *DELTA, *DENSE), (*NORMS, *ATTENTION, *DENSE)),
    "qwen35moe": ((*NORMS, *DELTA, *EXPERTS), (*NORMS, *ATTENTION, *EXPERTS)),
}
STATE_SPACE = {"conv_kernel": 4, "state_size": 64, "group_count": 2, "time_step_rank": 4, "inner_size": HIDDEN}
TYPES = ("Q4_K", "Q6_K", "Q8_0", "Q5_K", "Q4_0")  # one tensor after the other


def names(architecture: str) -> Iterator[str]:
    yield "token_embd.weight"
    yield "token_embd_norm.weight" if architecture == "lfm2" else "output_norm.weight"
    for index, layer in enumerate(LAYERS[architecture]):
        for name in layer:
            yield f"blk.{index}.{name}" + ("" if name in ("ssm_a", "ssm_dt.bias") else ".weight")


def _metadata(writer: gguf.GGUFWriter, architecture: str) -> None:
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(2)
    writer.add_head_count(2)
    writer.add_head_count_kv([0, 1] if architecture == "lfm2" else 1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_feed_forward_length(HIDDEN)
    if architecture == "lfm2":
        writer.add_shortconv_l_cache(3)
    else:
        writer.add_key_length(128)
        writer.add_rope_dimension_count(32)
        writer.add_rope_dimension_sections([8, 4, 4, 0])
        for key, value in (
            ("conv_kernel", 4),
            ("state_size", 64),
            ("group_count", 2),
            ("time_step_rank", 4),
            ("inner_size", HIDDEN),
        ):
            writer.add_uint32(f"{architecture}.ssm.{key}", value)
        writer.add_uint32(f"{architecture}.full_attention_interval", 2)
    if architecture == "qwen35moe":
        writer.add_expert_count(4)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(HIDDEN)
        writer.add_expert_shared_feed_forward_length(HIDDEN)
    writer.add_token_list([f"t{i}" for i in range(VOCABULARY)])


def write(architecture: str, folder: Path) -> Path:
    """A file of random weights. Its shapes are those of transformers' model of the file's own metadata."""
    draft = folder / "draft.gguf"
    writer = gguf.GGUFWriter(draft, architecture)
    _metadata(writer, architecture)
    writer.add_tensor("token_embd.weight", np.zeros((1, 1), dtype=np.float32))
    _finish(writer)
    metadata, _ = read_gguf_metadata(str(draft))
    config = AutoConfig.for_model(**get_gguf_config(metadata, tuple(names(architecture))))
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in AutoModelForCausalLM.from_config(config).state_dict().items()}
    mapping = get_gguf_conversion_mapping(architecture, config)
    converters = [c for c in mapping if isinstance(c, WeightConverter)]
    renamings = [c for c in mapping if not isinstance(c, WeightConverter)]
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(folder / f"{architecture}.gguf", architecture)
    _metadata(writer, architecture)
    for index, name in enumerate(names(architecture)):
        shape = shapes[rename_source_key(name, renamings, converters)[0]]
        if "_gate_exps" in name or "_up_exps" in name:
            shape = (shape[0], shape[1] // 2, shape[2])  # transformers joins the two
        shape = tuple(d for d in shape if d != 1) if "conv" in name and "proj" not in name else shape
        values = random.normal(0.0, 0.05, shape).astype(np.float32)
        if name.endswith("ssm_a"):
            values = -np.exp(values)
        elif "norm" in name:
            values += 1.0
        if name.endswith(".weight") and len(shape) > 1 and shape[-1] % 256 == 0 and min(shape) > 1 and "inp" not in name:
            index -= "_up_exps" in name  # of the same type as the gate: they are joined
            kind = gguf.GGMLQuantizationType[TYPES[index % len(TYPES)]]
            rows = libgguf.quantize_rows(values.reshape(-1, shape[-1]), kind.value)
            writer.add_tensor(name, rows.reshape(*shape[:-1], -1), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    _finish(writer)
    draft.unlink()
    return folder / f"{architecture}.gguf"


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
