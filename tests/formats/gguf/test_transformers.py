"""transformers loads our files with from_pretrained and computes from the weights they hold."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from hubquant.base import open_base
from hubquant.errors import BadModel
from hubquant.formats.gguf.reader import GgufSource
from tests.formats.gguf.familyresults import FamilyResults

# What transformers 5.23 loads and computes right, of models whose shapes are those of published ones: it takes what it does
# not read (rope scaling, head sizes, biases, soft-capping, …) from the defaults of the model class.
LOADED = (
    *("llama", "mistral", "qwen2", "qwen3:as-published", "gemma2:as-published", "gemma3:as-published", "phi3:as-published"),
    *("gpt2:as-published", "falcon", "starcoder2"),
)
# These it takes for other models: a head size, a scale, a window that is not the default, experts.
MISREAD = ("qwen3", "gemma2", "phi3", "mixtral", "qwen3moe", "gpt-oss")
# It says that it does not know these.
UNKNOWN = ("smollm3", "granite", "olmo2", "cohere2", "gptneox", "deepseek2")

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


def _from_file(path: Path) -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


@pytest.mark.parametrize("name", LOADED)
@torch.no_grad()
def test_from_pretrained_computes_what_the_checkpoint_does(
    name: str,
    random_model: Callable[[str], Path],
    write_gguf: Callable[..., Path],
    tmp_path: Path,
    family_result: FamilyResults,
) -> None:
    folder = random_model(name)
    path = write_gguf(tmp_path / "m.gguf", "F32", folder)
    open_base(path)  # raises BadModel if it found a difference
    loaded = _from_file(path)
    tokens = torch.randint(0, 2048, (1, 60), generator=torch.Generator().manual_seed(1))
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits
    difference = float((loaded(tokens).logits - expected).abs().max())
    family_result(name, from_pretrained=difference < 1e-3)
    assert difference < 1e-3  # the same weights in the same model; norms of 1 + w are rounded once more
    assert expected.std() > 0.5


@pytest.mark.parametrize("name", MISREAD)
def test_what_it_would_run_as_another_model_is_no_base(
    name: str, random_model: Callable[[str], Path], write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(BadModel, match=r"^m\.gguf cannot be run here"):
        open_base(write_gguf(tmp_path / "m.gguf", "F32", random_model(name)))


@pytest.mark.parametrize("name", UNKNOWN)
def test_from_pretrained_declines(
    name: str,
    random_model: Callable[[str], Path],
    write_gguf: Callable[..., Path],
    tmp_path: Path,
    family_result: FamilyResults,
) -> None:
    """If this fails, transformers has learned the family, and it belongs to LOADED."""
    family_result(name, from_pretrained=False)
    with pytest.raises(ValueError, match="is not supported yet"):
        _from_file(write_gguf(tmp_path / "m.gguf", "F32", random_model(name)))
