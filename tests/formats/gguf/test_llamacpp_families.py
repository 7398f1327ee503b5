"""Every family in llama.cpp: it loads, its logits are those of transformers, its perplexity is that of our own evaluation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hubquant.formats.gguf.families import family_of_model
from hubquant.formats.gguf.families.family import Family
from hubquant.formats.gguf.imatrix import ImatrixInfo
from hubquant.formats.gguf.metadata import Value
from tests.formats.gguf.familymodels import RANDOM_MODELS
from tests.formats.gguf.familyresults import FamilyResults
from tests.formats.gguf.llamacpp import decoded, load, logits, mean_kl, perplexity, torch_logits

pytestmark = pytest.mark.llamacpp

WINDOW = 256
MIXTURES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ4_NL", "IQ3_S", "Q5_1", "Q4_0")

# What is rounded here and not there sends some tokens to another expert
ROUTED = ("mixtral", "qwen3moe", "deepseek2", "deepseek3", "gpt-oss")


def _random_tokens(n: int) -> list[list[int]]:
    return torch.randint(0, 2048, (n, WINDOW), generator=torch.Generator().manual_seed(1)).tolist()


def test_logits_are_those_of_transformers(
    random_model_name: str,
    random_model: Callable[[str], Path],
    write_gguf: Callable[..., Path],
    tmp_path: Path,
    family_result: FamilyResults,
) -> None:
    folder = random_model(random_model_name)
    model = load(write_gguf(tmp_path / "m.gguf", "F16", folder), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    (tokens,) = _random_tokens(1)
    expected = torch_logits(reference, tokens)
    assert expected.std() > 0.5  # the logits say something, and would tell a wrong rotation or a lost bias
    each = sorted(mean_kl(p[None], q[None]) for p, q in zip(expected, logits(model, tokens), strict=True))
    # llama.cpp rounds the inputs of F16 matrices to F16: of a hundred tokens one may be so near to a tie of its router that it
    # goes to another expert
    routed = len(each) // 100 if "num_experts_per_tok" in RANDOM_MODELS[random_model_name] else 0
    kl = sum(each[: len(each) - routed]) / (len(each) - routed)
    family_result(random_model_name, loads=True, logits_kl=kl)
    assert kl < 1e-4


def _compared(folder: Path, path: Path, windows: list[list[int]]) -> tuple[float, float, float]:
    """Our perplexity of a file, by how much llama.cpp's differs (relative), and the mean KL divergence of its predictions."""
    model, published = load(path, n_ctx=WINDOW, n_batch=WINDOW, logits_all=True), decoded(folder, path)
    pairs = [(torch_logits(published, window), logits(model, window)) for window in windows]
    ours = perplexity(lambda tokens: pairs[windows.index(tokens)][0], windows, None)
    theirs = perplexity(lambda tokens: pairs[windows.index(tokens)][1], windows, None)
    return ours, theirs / ours - 1, sum(mean_kl(*pair) for pair in pairs) / len(pairs)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("llama:rope-linear", {"rope.scaling.factor": 1.0}),
        ("qwen2:rope-yarn-attention", {"rope.scaling.attn_factor": 1.0}),
        ("granite", {"attention.scale": 0.25}),
        ("granite", {"embedding_scale": 1.0}),
        ("granite", {"residual_scale": 1.0}),
        ("gemma2", {"attention.sliding_window": 255}),
        ("gemma2", {"attn_logit_softcapping": 50.0}),
        ("gemma2", {"final_logit_softcapping": 30.0}),
        ("gemma2:pattern", {"attention.sliding_window_pattern": [False, True, False]}),
        ("gemma3", {"rope.freq_base_swa": 1e6}),
        ("gemma3:pattern", {"rope.scaling.factor": 1.0}),
        ("phi3", {"rope.dimension_count": 16}),
        ("phi3:longrope", {"rope.scaling.attn_factor": 1.0}),
        ("cohere2", {"logit_scale": 0.0625}),
        ("cohere2", {"attention.sliding_window_pattern": [True, True, True, True]}),
    ],
)
def test_a_wrong_hyperparameter_would_be_seen(
    name: str,
    wrong: dict[str, Value],
    random_model: Callable[[str], Path],
    write_gguf: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The models are such that what the test above finds equal would not be equal by chance."""

    def family(config: dict[str, Any]) -> Family:
        right = family_of_model(config)
        return replace(right, hyperparameters=lambda whole: {**right.hyperparameters(whole), **wrong})

    folder = random_model(name)
    monkeypatch.setattr("hubquant.formats.gguf.writer.family_of_model", family)
    model = load(write_gguf(tmp_path / "m.gguf", "F16", folder), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    (tokens,) = _random_tokens(1)
    assert mean_kl(torch_logits(reference, tokens), logits(model, tokens)) > 1e-3


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [name for name in RANDOM_MODELS if ":" not in name])
def test_perplexity_is_that_of_our_own_evaluation(
    name: str,
    random_model: Callable[..., Path],
    write_gguf: Callable[..., Path],
    tmp_path: Path,
    family_result: FamilyResults,
) -> None:
    """llama.cpp rounds the inputs of quantized matrices to 8 bits: that is a KL divergence of up to 5e-4 here, and moves the
    mean of 8 x 127 losses by sqrt(2 * 5e-4 / 1016) = 0.1 % (one standard deviation)."""
    folder, windows = random_model(name, wide=True), _random_tokens(8)
    for mixture in MIXTURES:
        path = write_gguf(tmp_path / "m.gguf", mixture, folder, None if mixture == "F16" else ImatrixInfo("i.gguf", "made up", 1))
        expected, difference, kl = _compared(folder, path, windows)
        print(f"{name} {mixture}: perplexity {expected:.3f}, llama.cpp's differs by {100 * difference:.3f} %, mean KL {kl:.2e}")
        family_result(name, perplexity={mixture: difference})
        assert abs(difference) < 0.005
        assert kl < (1e-2 if name in ROUTED else 1e-3)
