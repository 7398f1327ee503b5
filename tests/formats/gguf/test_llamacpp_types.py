"""The types of every mixture are those that llama.cpp chooses, asked by its C API on files of all shapes its rules know.

The files hold matrices of two rows: llama_model_quantize reads the hyperparameters and the names, and no shape beyond the
length of a row.
"""

import ctypes
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from hubquant.errors import BadModel
from hubquant.formats.gguf.mixtures import MIXTURES, Dimensions, is_quantized, tensor_types

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python; run make test-gguf")
pytestmark = pytest.mark.llamacpp

DENSE = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
EXPERTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
SHARED = (*EXPERTS, "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", "ffn_gate_inp_shexp")
LATENT = ("attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_k_b", "attn_v_b", "attn_output", *EXPERTS[4:])
# name: architecture, layers, heads, key-value heads, experts, row length, matrices of a layer, an output of its own
MODELS: dict[str, tuple[str, int, int, int, int, int, tuple[str, ...], bool]] = {
    "llama": ("llama", 32, 32, 32, 0, 256, DENSE, True),
    "llama-shared-heads": ("llama", 18, 32, 8, 0, 256, DENSE, False),
    "llama-rows-of-64": ("llama", 9, 8, 8, 0, 64, DENSE, True),
    "llama-rows-of-48": ("llama", 2, 8, 8, 0, 48, DENSE, False),
    "llama-70b": ("llama", 80, 64, 8, 0, 256, DENSE, True),
    "llama-65b": ("llama", 80, 64, 64, 0, 256, DENSE, True),
    "mixtral": ("llama", 32, 32, 8, 8, 256, EXPERTS, True),
    "qwen2": ("qwen2", 80, 16, 8, 0, 256, DENSE, True),
    "qwen2moe": ("qwen2moe", 24, 16, 16, 60, 256, SHARED, True),
    "qwen3moe": ("qwen3moe", 48, 32, 4, 128, 256, EXPERTS, False),
    "four-experts": ("qwen3moe", 12, 8, 8, 4, 256, EXPERTS, True),
    "falcon": ("falcon", 60, 64, 8, 0, 256, ("attn_qkv", "attn_output", "ffn_up", "ffn_down"), True),
    "gpt2": ("gpt2", 12, 12, 12, 0, 256, ("attn_qkv", "attn_output", "ffn_up", "ffn_down"), False),
    "gemma3": ("gemma3", 26, 4, 1, 0, 256, DENSE, False),
    "deepseek2": ("deepseek2", 27, 16, 1, 64, 256, LATENT, True),
}


def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    _, n_layer, _, _, n_expert, n, matrices, own_output = MODELS[name]
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (2, n), "output_norm.weight": (n,)}
    if own_output:
        shapes["output.weight"] = (2, n)
    if name == "gpt2":
        shapes["position_embd.weight"] = (2, n)
    for i in range(n_layer):
        shapes[f"blk.{i}.attn_norm.weight"] = (n,)
        for matrix in matrices:
            stacked = matrix.endswith("_exps") or matrix in ("attn_k_b", "attn_v_b")
            shapes[f"blk.{i}.{matrix}.weight"] = (n_expert, 1, n) if stacked else (2, n)
    return shapes


def _f16_file(path: Path, name: str) -> None:
    architecture, n_layer, n_head, n_head_kv, n_expert, n, _, _ = MODELS[name]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(n)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(n)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(2)
    writer.add_tokenizer_model("no_vocab")
    writer.add_sliding_window(512)
    writer.add_rope_dimension_count(16)
    writer.add_key_length(16)
    writer.add_value_length(16)
    if n_expert:
        writer.add_expert_count(n_expert)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(n)
        writer.add_expert_shared_feed_forward_length(n)
    if architecture == "deepseek2":
        writer.add_leading_dense_block_count(0)
        writer.add_q_lora_rank(64)
        writer.add_kv_lora_rank(64)
        writer.add_expert_shared_count(1)
        writer.add_expert_weights_scale(1.0)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
        writer.add_rope_scaling_yarn_log_mul(0.1)
    rng = np.random.default_rng(1)
    for tensor, shape in _shapes(name).items():
        kept = not is_quantized(tensor, shape)
        writer.add_tensor(tensor, rng.normal(0, 0.02, shape).astype(np.float32 if kept else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _chosen_by_llama_cpp(source: Path, target: Path, mixture: str, with_imatrix: bool) -> dict[str, str] | None:
    """Tensor → type in the file that llama_model_quantize writes; None where it refuses."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = MIXTURES[mixture].file_type, 1
    if with_imatrix:
        matrices = [t for t in gguf.GGUFReader(source).tensors if len(t.shape) > 1]
        entries = (llama_cpp.llama_cpp.llama_model_imatrix_data * (len(matrices) + 1))()
        keep = [np.ones(int(np.prod(t.shape)) // int(t.shape[1]), np.float32) for t in matrices]
        for entry, tensor, ones in zip(entries, matrices, keep, strict=False):
            entry.name, entry.size = tensor.name.encode(), len(ones)
            entry.data = ones.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        return None
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(target).tensors}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("f16")
    for name in MODELS:
        _f16_file(folder / f"{name}.gguf", name)
    return {name: folder / f"{name}.gguf" for name in MODELS}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """llama.cpp tells of every tensor."""
    callback = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


@pytest.mark.parametrize("with_imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("name", MODELS)
def test_types_are_those_llama_cpp_chooses(
    name: str, mixture: str, with_imatrix: bool, sources: dict[str, Path], tmp_path: Path
) -> None:
    architecture, n_layer, n_head, n_head_kv, n_expert, *_ = MODELS[name]
    theirs = _chosen_by_llama_cpp(sources[name], tmp_path / "t.gguf", mixture, with_imatrix)
    dimensions = Dimensions(architecture, n_layer, n_head, n_head_kv, n_expert)
    if theirs is None:
        with pytest.raises(BadModel, match="importance matrix"):
            tensor_types(mixture, _shapes(name), dimensions, with_imatrix)
    else:
        assert tensor_types(mixture, _shapes(name), dimensions, with_imatrix) == theirs
