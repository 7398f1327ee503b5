"""The slot of transformers' GGUF loader: what fills it, what stays out of its way, and whole models through it.

There is no GPU here: tensors on the CPU are let through to our module, whose operators run their definitions. The Triton
kernels go the same way in tests/kernels/interpreted/test_gguf_loading.py.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hubquant_kernels import gguf as ours
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GgufConfig
from transformers.integrations.gguf import kernels
from transformers.integrations.gguf.utils import GgufEmbedding, GgufExperts, GgufLinear
from transformers.quantizers import quantizer_gguf

from hubquant.integrations import gguf as slot

from .ggufmodels import LAYERS, write
from .loadingresults import record


@pytest.fixture(autouse=True)
def empty_slot(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HUBQUANT_BACKEND", raising=False)
    slot.restore()
    slot.install()
    yield
    slot.restore()
    slot.install()


@pytest.fixture
def as_if_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "usable", lambda: True)
    monkeypatch.setattr(kernels, "kernel_can_read", lambda tensor: kernels.get_gguf_kernel() is not False)


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


def test_without_a_gpu_the_slot_stays_empty_and_transformers_unpacks(tmp_path: Path) -> None:
    assert kernels.get_gguf_kernel() is False
    assert quantizer_gguf.get_gguf_kernel is kernels.get_gguf_kernel is slot.get_gguf_kernel
    model = load(write("lfm2", tmp_path))
    assert not any(isinstance(m, GgufLinear | GgufEmbedding) for m in model.modules())


def test_on_a_gpu_it_is_ours(as_if_on_gpu: None) -> None:
    kernel = kernels.get_gguf_kernel()
    assert kernel.mul_mat_vec is ours.mul_mat_vec
    assert kernel.supports(12)
    assert kernels.get_gguf_kernel() is kernel


@pytest.mark.parametrize(("backend", "first"), [("", False), ("1", True)])
def test_transformers_own_kernel_comes_first_unless_told_otherwise(
    backend: str, first: bool, as_if_on_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBQUANT_BACKEND", backend)
    theirs = object()

    def published() -> object:
        kernels._gguf_kernel = theirs
        return theirs

    monkeypatch.setattr(slot, "_stock", published)
    assert (kernels.get_gguf_kernel() is not theirs) == first
    monkeypatch.undo()  # before the slot is emptied: what is undone is this


def test_restore_empties_the_slot(as_if_on_gpu: None) -> None:
    kernels.get_gguf_kernel()
    slot.restore()
    assert kernels._gguf_kernel is None
    assert kernels.get_gguf_kernel.__module__ == quantizer_gguf.get_gguf_kernel.__module__ == kernels.__name__
    assert kernels.get_gguf_kernel() is False


@pytest.mark.parametrize("architecture", LAYERS)
def test_models_stay_packed_and_compute_what_transformers_unpacks(architecture: str, as_if_on_gpu: None, tmp_path: Path) -> None:
    file = write(architecture, tmp_path)
    packed, unpacked = load(file), load(file, dequantize=True)
    kinds = [type(m) for m in packed.modules()]
    assert kinds.count(GgufLinear) > 6
    assert kinds.count(GgufEmbedding) == 1
    assert kinds.count(GgufExperts) == (2 if architecture == "qwen35moe" else 0)
    assert sum(t.nbytes for t in packed.state_dict().values()) < 0.4 * sum(t.nbytes for t in unpacked.state_dict().values())
    for n_tokens in (1, 4, 12):  # up to 8 rows go to mul_mat_vec, more are multiplied with pieces that are unpacked
        tokens = torch.arange(2, 2 + n_tokens)[None]
        expected = logits(unpacked, tokens)
        # float32 sums of at most 256 terms in another order, through two layers
        found = logits(packed, tokens)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()))
        record(f"gguf-{architecture}", "logits", float((found - expected).abs().max() / expected.std()))
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    prompt = torch.arange(2, 12)[None]
    assert torch.equal(packed.generate(prompt, **options), unpacked.generate(prompt, **options))
    record(f"gguf-{architecture}", "generated", True)


def test_a_layer_compiles_whole(as_if_on_gpu: None, tmp_path: Path) -> None:
    model = load(write("lfm2", tmp_path))
    tokens = torch.arange(2, 6)[None]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled, tokens), logits(model, tokens), rtol=1e-5, atol=1e-5)
    record("gguf-lfm2", "compiled", True)


def test_nothing_breaks_where_triton_is_missing() -> None:
    code = """
import sys
sys.modules["triton"] = None
import hubquant
import transformers.modeling_utils
from transformers.integrations.gguf import kernels
import hubquant_kernels.gguf
print(kernels.get_gguf_kernel.__module__, kernels.get_gguf_kernel())
hubquant.restore()
print(kernels.get_gguf_kernel.__module__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["hubquant.integrations.gguf", "False", "transformers.integrations.gguf.kernels"]
