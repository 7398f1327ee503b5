"""The online softmax of two models against float64, block by block and split by split of the vocabulary."""

import math
from collections.abc import Callable

import pytest
import torch
from hubquant_kernels import divergence as definition
from hubquant_kernels.gpu import divergence as kernel
from torch import Tensor

UNIT = 2.0**-24
VOCABULARY = 500


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small vocabulary takes several blocks, the last in part, and several splits."""
    monkeypatch.setattr(kernel, "BLOCK", 128)
    monkeypatch.setattr(kernel, "PROGRAMS", 6)
    monkeypatch.setattr(kernel, "NVIDIA", kernel.Heads(rows=16, columns=64, depth=32, num_warps=8, num_stages=3))


def logits(n: int, seed: int, spread: float = 4.0, offset: float = 0.0) -> Tensor:
    return spread * torch.randn(n, VOCABULARY, generator=torch.Generator().manual_seed(seed)) + offset


def check(results: tuple[Tensor, Tensor, Tensor], base: Tensor, other: Tensor, targets: Tensor, logit_error: float = 0.0) -> None:
    """Against float64. A log-probability is off by the rounding of its logit, of the exponentials (3 spread u) and of their sum
    (V u); in the divergence both are, weighted by probabilities that sum to 1 and are off by as much, relatively."""
    p, q = torch.log_softmax(base.double(), 1), torch.log_softmax(other.double(), 1)
    ratio = (p - q).masked_fill(p == -torch.inf, 0)
    expected = (p.exp() * ratio).sum(1)
    spread = float(max(t[t > -torch.inf].max() - t[t > -torch.inf].min() for t in (base, other)))
    one = UNIT * (3 * spread + base.shape[1] + 16) + 2 * logit_error
    nll, kl, agree = results
    assert (nll.dtype, kl.dtype, agree.dtype) == (torch.float32, torch.float32, torch.bool)
    assert float((nll + q.gather(1, targets[:, None])[:, 0]).abs().max()) <= one
    finite = ratio[torch.isfinite(ratio)]
    assert float((kl - expected).abs().nan_to_num(0).max()) <= 2 * one + 2 * one * float(finite.abs().max())
    assert torch.equal(torch.isinf(kl), torch.isinf(expected))
    assert torch.equal(agree, base.argmax(1) == other.argmax(1))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_equals_float64_within_float32_rounding(noise: float, offset: float) -> None:
    base = logits(6, 0, offset=offset)
    other = base + noise * logits(6, 1, spread=1.0)
    targets = torch.tensor([0, 127, 128, 499, 300, 5])
    check(kernel.divergence(base, other, targets), base, other, targets)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    base, other = logits(4, 4).to(dtype), logits(4, 5).to(dtype)
    targets = torch.arange(4)
    check(kernel.divergence(base, other, targets), base, other, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_logits_diverge_by_nothing_at_all(dtype: torch.dtype) -> None:
    base = logits(4, 3).to(dtype)
    _, kl, agree = kernel.divergence(base, base.clone(), torch.zeros(4, dtype=torch.int64))
    assert torch.equal(kl, torch.zeros(4))
    assert bool(agree.all())


@pytest.mark.parametrize("operator", [kernel.divergence, definition.divergence])
def test_rounding_makes_no_divergence_negative(operator: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
    """Of models that differ by some float32 roundings the divergence is some 1e-13, far below the rounding of its terms."""
    base = logits(64, 8)
    other = base * (1 + 2 * UNIT * torch.randn(base.shape, generator=torch.Generator().manual_seed(9)))
    _, kl, _ = operator(base, other, torch.zeros(64, dtype=torch.int64))
    assert float(kl.min()) == 0, "some fell below, or this test shows nothing"
    _, broken, _ = operator(base * torch.nan, other, torch.zeros(64, dtype=torch.int64))
    assert bool(broken.isnan().all()), "what is no number stays so"


def test_the_largest_logits_may_come_in_any_block() -> None:
    """Rising, falling, and the two models' peaks in blocks of their own: sums so far fade when a larger logit comes."""
    rising = torch.linspace(-40, 40, VOCABULARY)
    base = torch.stack([rising, rising.flip(0), rising, torch.zeros(VOCABULARY)])
    other = torch.stack([rising, rising, rising.flip(0), torch.zeros(VOCABULARY)])
    targets = torch.tensor([499, 0, 250, 64])
    check(kernel.divergence(base, other, targets), base, other, targets)


def test_of_equally_likely_tokens_the_first_counts() -> None:
    base, other = torch.zeros(2, VOCABULARY), torch.zeros(2, VOCABULARY)
    base[0, [7, 300]] = other[0, [7, 499]] = 1.0
    base[1, [7, 300]] = other[1, [8, 300]] = 1.0
    assert kernel.divergence(base, other, torch.tensor([0, 0]))[2].tolist() == [True, False]


def test_tokens_that_are_ruled_out_add_nothing_or_make_it_infinite() -> None:
    base, other = logits(3, 6), logits(3, 7)
    base[0, :140] = other[0, :140] = -torch.inf  # more than the first block
    base[1, 200:] = -torch.inf
    other[2, 4] = -torch.inf
    targets = torch.full((3,), 150)
    results = kernel.divergence(base, other, targets)
    check(results, base, other, targets)
    assert results[1][2].item() == math.inf


def test_no_positions() -> None:
    assert [len(t) for t in kernel.divergence(torch.zeros(0, 8), torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64))] == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "vocabulary", "width", "other_width"), [(1, 64, 32, 32), (20, 500, 40, 72), (33, 130, 64, 48)])
def test_heads_give_what_their_logits_give(n: int, vocabulary: int, width: int, other_width: int, dtype: torch.dtype) -> None:
    """Products of half-precision numbers are exact in float32; a logit of k of them is off by (k + 1) u Σ|h||w|."""
    random = torch.Generator().manual_seed(n)
    hidden, head = torch.randn(n, width, generator=random).to(dtype), torch.randn(vocabulary, width, generator=random).to(dtype)
    theirs = torch.randn(n, other_width, generator=random).to(dtype)
    their_head = torch.randn(vocabulary, other_width, generator=random).to(dtype)
    targets = torch.randint(0, vocabulary, (n,), generator=random)
    results = kernel.divergence_of_heads(hidden, head, theirs, their_head, targets)
    base, other = hidden.double() @ head.double().T, theirs.double() @ their_head.double().T
    largest = max(float((h.double().abs() @ w.double().abs().T).max()) for h, w in ((hidden, head), (theirs, their_head)))
    check(results, base, other, targets, logit_error=(max(width, other_width) + 1) * UNIT * largest)
    for mine, its in zip(results[:2], definition.divergence_of_heads(hidden, head, theirs, their_head, targets)[:2], strict=True):
        assert torch.allclose(mine, its, rtol=1e-4, atol=1e-4)
