"""Cross-entropy, KL divergence and agreement against float64."""

import math

import pytest
import torch
from hubquant_kernels.divergence import divergence, divergence_of_heads
from torch import Tensor

UNIT = 2.0**-24
VOCABULARY = 500


def logits(n: int, seed: int, spread: float = 4.0, offset: float = 0.0) -> Tensor:
    return spread * torch.randn(n, VOCABULARY, generator=torch.Generator().manual_seed(seed)) + offset


def reference(base: Tensor, other: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The definitions, in float64, by plain exponentials."""
    p = base.double().sub(base.double().amax(1, keepdim=True)).exp()
    q = other.double().sub(other.double().amax(1, keepdim=True)).exp()
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    nll = -q[torch.arange(len(targets)), targets].log()
    return nll, (p * (p / q).log()).sum(1), base.argmax(1) == other.argmax(1)


def tolerance(base: Tensor, other: Tensor) -> tuple[float, float]:
    """Largest errors that float32 can make, of a log-probability and of the divergence.

    log p = (x − m) − log Σ e^(x − m): the difference rounds once (range·u), its exponential takes that over and rounds, the
    sum of V terms adds at most V·u, the last difference rounds once more. In the divergence both logs err by that, each of V
    products rounds three times and their sum V times.
    """
    spread = float(max((t.amax(1) - t.amin(1)).max() for t in (base, other)).double())
    log_probability = UNIT * (3 * spread + VOCABULARY + 2 * math.log(VOCABULARY) + 8)
    largest_ratio = float((torch.log_softmax(base.double(), 1) - torch.log_softmax(other.double(), 1)).abs().max())
    return log_probability, 2 * log_probability + (log_probability + UNIT * (VOCABULARY + 3)) * largest_ratio


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_equals_float64_within_float32_rounding(noise: float, offset: float) -> None:
    base = logits(40, 0, offset=offset)
    other = base + noise * logits(40, 1, spread=1.0)
    targets = torch.randint(0, VOCABULARY, (40,), generator=torch.Generator().manual_seed(2))
    nll, kl, agree = divergence(base, other, targets)
    expected_nll, expected_kl, expected_agree = reference(base, other, targets)
    for_log, for_kl = tolerance(base, other)
    assert float((nll - expected_nll).abs().max()) <= for_log
    assert float((kl - expected_kl).abs().max()) <= for_kl
    assert torch.equal(agree, expected_agree)
    assert (nll.dtype, kl.dtype, agree.dtype) == (torch.float32, torch.float32, torch.bool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_logits_diverge_by_nothing_at_all(dtype: torch.dtype) -> None:
    base = logits(20, 3).to(dtype)
    _, kl, agree = divergence(base, base.clone(), torch.zeros(20, dtype=torch.int64))
    assert torch.equal(kl, torch.zeros(20))
    assert bool(agree.all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    base, other = logits(10, 4).to(dtype), logits(10, 5).to(dtype)
    targets = torch.arange(10)
    for_log, for_kl = tolerance(base, other)
    nll, kl, _ = divergence(base, other, targets)
    expected_nll, expected_kl, _ = reference(base, other, targets)
    assert float((nll - expected_nll).abs().max()) <= for_log
    assert float((kl - expected_kl).abs().max()) <= for_kl


def test_divergence_goes_from_the_base_to_the_other() -> None:
    """KL is not symmetric: a base that is sure, against an other that is not, costs log V; the reverse much more."""
    sure, unsure = torch.full((1, VOCABULARY), -50.0), torch.zeros(1, VOCABULARY)
    sure[0, 7] = 0.0
    target = torch.tensor([7])
    _, kl, _ = divergence(sure, unsure, target)
    assert math.isclose(kl.item(), math.log(VOCABULARY), rel_tol=1e-5)
    _, kl, _ = divergence(unsure, sure, target)
    assert math.isclose(kl.item(), (VOCABULARY - 1) / VOCABULARY * 50 - math.log(VOCABULARY), rel_tol=1e-5)


def test_top_1_is_counted_where_the_most_likely_token_is_the_same() -> None:
    base = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    other = torch.tensor([[0.0, 9.0, 8.0], [0.0, 1.0, 1.5], [0.1, 0.0, 0.0]])
    assert divergence(base, other, torch.tensor([0, 1, 2]))[2].tolist() == [True, False, True]


def test_tokens_that_both_models_rule_out_add_nothing() -> None:
    """Some models mask the padding of their vocabulary with −inf; the rest of the distribution is still compared."""
    base, other = logits(8, 6), logits(8, 7)
    targets = torch.full((8,), 3)
    expected = divergence(base[:, :-20], other[:, :-20], targets)
    base[:, -20:] = other[:, -20:] = -torch.inf
    for_log, for_kl = tolerance(base[:, :-20], other[:, :-20])
    nll, kl, _ = divergence(base, other, targets)
    assert float((nll - expected[0]).abs().max()) <= 2 * for_log
    assert float((kl - expected[1]).abs().max()) <= 2 * for_kl


def test_a_token_that_only_the_other_rules_out_makes_the_divergence_infinite() -> None:
    base, other = logits(1, 8), logits(1, 9)
    other[0, 4] = -torch.inf
    assert divergence(base, other, torch.tensor([0]))[1].item() == math.inf


def test_operator_keeps_torchs_rules() -> None:
    torch.library.opcheck(divergence, (logits(3, 0), logits(3, 1), torch.tensor([1, 2, 3])))
    torch.library.opcheck(divergence, (logits(3, 0).half(), logits(3, 1).half(), torch.tensor([1, 2, 3])))


def test_heads_give_what_their_logits_give() -> None:
    random = torch.Generator().manual_seed(10)
    hidden, head = torch.randn(5, 24, generator=random), torch.randn(VOCABULARY, 24, generator=random)
    theirs, their_head = torch.randn(5, 16, generator=random), torch.randn(VOCABULARY, 16, generator=random)
    targets = torch.arange(5)
    expected = divergence(hidden @ head.T, theirs @ their_head.T, targets)
    for mine, its in zip(divergence_of_heads(hidden, head, theirs, their_head, targets), expected, strict=True):
        assert torch.equal(mine, its)
    torch.library.opcheck(divergence_of_heads, (hidden, head, theirs, their_head, targets))
