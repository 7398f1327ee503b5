from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.formats.gguf.header import GgufHeader, StoredTensor
from hubquant.formats.gguf.reader import GgufSource
from hubquant.quantize.ggml import GGML_TYPES, decode, encode


@pytest.mark.parametrize("mixture", ["F32", "F16", "BF16"])
def test_unquantized_weights_come_back_exactly(
    mixture: str, demo_gguf: Callable[[str], Path], demo_weights: dict[str, Tensor]
) -> None:
    source = GgufSource(demo_gguf(mixture))
    assert sorted(source.names()) == sorted(demo_weights)
    exact = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[mixture]
    for name, weight in demo_weights.items():
        stored = weight if weight.ndim == 1 else weight.to(exact).float()
        assert torch.equal(source.tensor(name), stored), name


@pytest.mark.parametrize("mixture", ["Q8_0", "Q6_K", "Q4_K_M"])
def test_quantized_weights_are_what_the_encoder_made(
    mixture: str,
    demo_gguf: Callable[[str], Path],
    demo_weights: dict[str, Tensor],
    importance: Callable[[str, Tensor], Tensor | None],
) -> None:
    """Rows are encoded by themselves, so their order in the file may not show. A row each, for time."""
    source = GgufSource(demo_gguf(mixture))
    for name in ("model.layers.3.self_attn.k_proj.weight", "model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight"):
        row, kind = demo_weights[name][5:6], source.type_of(name)
        expected = decode(encode(row, kind, importance(name, demo_weights[name])), kind)
        assert torch.equal(source.tensor(name)[5:6], expected), name


def test_every_type_of_ggml_reads_as_in_the_gguf_package(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "llama")
    writer.add_uint32("llama.attention.head_count", 1)
    writer.add_uint32("llama.attention.head_count_kv", 1)
    writer.add_uint32("llama.block_count", len(GGML_TYPES))
    expected = {}
    for layer, kind in enumerate(GGML_TYPES.values()):
        data = encode(torch.randn(4, 512, generator=torch.Generator().manual_seed(layer)), kind.name, torch.ones(512)).numpy()
        name = f"blk.{layer}.ffn_up.weight"
        values = data.view({"F32": np.float32, "F16": np.float16}.get(kind.name, np.uint8))
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType(kind.value))
        expected[f"model.layers.{layer}.mlp.up_proj.weight"] = gguf.dequantize(data, gguf.GGMLQuantizationType(kind.value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GgufSource(tmp_path / "all.gguf")
    for name, values in expected.items():
        np.testing.assert_array_equal(source.tensor(name).numpy(), values.reshape(4, 512), err_msg=source.type_of(name))


def test_a_tensor_that_is_not_there(demo_gguf: Callable[[str], Path]) -> None:
    with pytest.raises(BadModel, match=r"tiny-llama-Q8_0\.gguf: no tensor lm_head\.weight in the file"):
        GgufSource(demo_gguf("Q8_0")).tensor("lm_head.weight")


@pytest.mark.parametrize(
    ("architecture", "heads", "tensor", "message"),
    [
        ("bloom", 1, "token_embd.weight", "GGUF architecture 'bloom' cannot be read"),
        ("llama", 0, "blk.0.attn_q.weight", "attention.head_count is 0"),
        ("llama", 1, "blk.0.nonsense.weight", "nonsense"),
        ("llama", 3, "blk.0.attn_q.weight", "4 rows, which 3 heads"),
    ],
)
def test_files_that_are_sound_but_not_ours(architecture: str, heads: int, tensor: str, message: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
    writer.add_uint32(f"{architecture}.attention.head_count", heads)
    writer.add_uint32(f"{architecture}.attention.head_count_kv", heads)
    writer.add_uint32(f"{architecture}.block_count", 1)
    writer.add_tensor(tensor, np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadModel, match=message):
        GgufSource(tmp_path / "m.gguf").tensor("model.layers.0.self_attn.q_proj.weight")


HOSTILE: tuple[object, ...] = (None, "x", True, 0, -1, 3, 5, 1 << 31, 1 << 62, [1, 2], 1.5)


@pytest.mark.parametrize("name", ["llama", "gptneox", "falcon:groups", "mixtral", "deepseek2", "gpt-oss", "gemma2"])
def test_any_hyperparameters_are_an_error_or_readable(
    name: str,
    random_model: Callable[[str], Path],
    write_gguf: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And any shapes of tensors: one dimension less, one more, one row more. In memory and time that the file's size bounds."""
    path = write_gguf(tmp_path / "m.gguf", "F16", random_model(name))
    header = GgufHeader.read(path)
    assert GgufSource(path).names()
    asked = ("block_count", "head_count", "head_count_kv", "expert_count", "key_length_mla", "rope.dimension_count")
    counts = [key for key in header.values if key.endswith(asked)]
    values = [{**header.values, key: value} for key in counts for value in HOSTILE]
    tensors = []
    for stored_name, stored in list(header.tensors.items())[:20]:
        for shape in (stored.shape[1:], (*stored.shape, 1), (stored.shape[0] + 1, *stored.shape[1:])):
            tensors.append({**header.tensors, stored_name: replace(stored, shape=shape)})
    changed = [replace(header, values=v) for v in values] + [replace(header, tensors=t) for t in tensors if () not in _shapes(t)]
    refused = 0
    for damaged in changed:
        monkeypatch.setattr(GgufHeader, "read", lambda _path, damaged=damaged: damaged)
        try:
            source = GgufSource(path)
            for hf_name in source.names()[:3]:
                source.type_of(hf_name)
        except BadModel:
            refused += 1
    assert refused


def _shapes(tensors: dict[str, StoredTensor]) -> set[tuple[int, ...]]:
    return {tensor.shape for tensor in tensors.values()}
