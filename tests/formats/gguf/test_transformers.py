"""transformers loads our files with from_pretrained and computes from the weights they hold."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from hubquant.formats.gguf.reader import GgufSource

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife."


@torch.no_grad()
def test_from_pretrained_gives_the_logits_of_the_stored_weights(demo_folder: Path, demo_gguf: Callable[[str], Path]) -> None:
    path = demo_gguf("Q4_K_M")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    assert torch.equal(tokens, AutoTokenizer.from_pretrained(demo_folder)(TEXT, return_tensors="pt").input_ids)
    loaded = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(gguf_file=path.name, dequantize=True),
    )
    source = GgufSource(path)
    expected = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32)
    original = expected(tokens).logits
    expected.load_state_dict({name: source.tensor(name) for name in source.names()}, strict=False)
    stored = expected(tokens).logits
    torch.testing.assert_close(loaded(tokens).logits, stored, atol=1e-3, rtol=1e-4)
    assert (stored - original).abs().max() > 0.05  # far more than the tolerance: it is the quantized weights that are seen
