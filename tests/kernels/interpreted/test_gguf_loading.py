"""Whole models through transformers' GGUF loader, with the Triton kernels in the slot."""

from pathlib import Path

import pytest
import torch
from hubquant_kernels import gguf as ours
from hubquant_kernels.gpu import ggml_dequantize, ggml_matmul
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GgufConfig
from transformers.integrations.gguf import kernels
from transformers.integrations.gguf.utils import GgufLinear

from hubquant.integrations import gguf as slot
from tests.integrations.ggufmodels import write
from tests.integrations.loadingresults import record


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on the CPU go to the launchers, which Triton interprets."""
    monkeypatch.setattr(slot, "usable", lambda: True)
    monkeypatch.setattr(kernels, "kernel_can_read", lambda tensor: True)
    monkeypatch.setattr(kernels, "_gguf_kernel", None)
    monkeypatch.setattr(kernels, "get_gguf_kernel", slot.get_gguf_kernel)
    monkeypatch.setattr("transformers.quantizers.quantizer_gguf.get_gguf_kernel", slot.get_gguf_kernel)
    monkeypatch.setattr(ours, "ggml_matmul", ggml_matmul.ggml_matmul)
    monkeypatch.setattr(ours, "ggml_matmul_experts", ggml_matmul.ggml_matmul_experts)
    monkeypatch.setattr(ours, "ggml_dequantize", ggml_dequantize.ggml_dequantize)


def load(file: Path, dequantize: bool = False) -> nn.Module:
    """Packed, or unpacked by transformers' own decoder."""
    config = GgufConfig(dequantize=True) if dequantize else None
    options = {"gguf_file": file.name, "dtype": torch.float32, "attn_implementation": "eager", "quantization_config": config}
    with pytest.MonkeyPatch.context() as patch:
        if dequantize:
            patch.setattr(kernels, "kernel_can_read", lambda tensor: False)
        model: nn.Module = AutoModelForCausalLM.from_pretrained(file.parent, **options)
    return model


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    result: Tensor = model(tokens).logits
    return result


@pytest.mark.parametrize(("architecture", "n_tokens"), [("lfm2", 2), ("lfm2", 9), ("qwen35moe", 1)])
def test_a_model_computes_what_transformers_unpacks(architecture: str, n_tokens: int, tmp_path: Path) -> None:
    file = write(architecture, tmp_path)
    packed, unpacked = load(file), load(file, dequantize=True)
    assert any(isinstance(m, GgufLinear) for m in packed.modules())
    tokens = torch.arange(2, 2 + n_tokens)[None]
    expected = logits(unpacked, tokens)
    # float32 sums of at most 256 terms in another order, through two layers
    torch.testing.assert_close(logits(packed, tokens), expected, rtol=0, atol=1e-4 * float(expected.std()))
    record(f"gguf-{architecture}", "interpreted", True)
