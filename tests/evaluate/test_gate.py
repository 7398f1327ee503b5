import pytest

from hubquant.artifact import Evaluation, Protocol
from hubquant.evaluate.gate import CHECKS, judge
from hubquant.recipe import QUALITY_LIMITS, VARIANTS


def measured(variant: str, ratio: float, kl: float, top1: float) -> Evaluation:
    protocol = Protocol(
        name="gptq-512", window=512, stride=512, bos="as tokenized", scored="all", text="t", text_sha256="0" * 64, n_tokens=1022
    )
    return Evaluation(
        variant=variant, protocol=protocol, perplexity=10 * ratio, base_perplexity=10,
        mean_kl=kl, p99_kl=kl, p999_kl=kl, max_kl=kl, top1_agreement=top1,
    )  # fmt: skip


@pytest.mark.parametrize("name", list(VARIANTS))
def test_exactly_at_the_limits_passes_and_a_hair_beyond_does_not(name: str) -> None:
    limit = QUALITY_LIMITS[VARIANTS[name].bits]
    at = (limit.perplexity_ratio, limit.mean_kl, limit.top1_agreement)
    assert all(v.passed for v in judge(measured(name, *at), VARIANTS[name].bits, QUALITY_LIMITS))
    for i, step in enumerate((1.001, 1.001, 0.999)):
        beyond = tuple(x * step if i == j else x for j, x in enumerate(at))
        verdicts = judge(measured(name, *beyond), VARIANTS[name].bits, QUALITY_LIMITS)
        assert [v.check for v in verdicts if not v.passed] == [CHECKS[i]]


def test_a_number_that_is_none_fails() -> None:
    nan = float("nan")
    assert not any(v.passed for v in judge(measured("gguf-q8_0", nan, nan, nan), 8, QUALITY_LIMITS))


def test_a_width_without_limits_takes_those_of_the_next_wider() -> None:
    verdict = judge(measured("gguf-q5_k_m", 1, 0, 1), 5, {4: QUALITY_LIMITS[4], 6: QUALITY_LIMITS[6]})[0]
    assert verdict.limit == QUALITY_LIMITS[6].perplexity_ratio


def test_the_reason_says_value_and_limit() -> None:
    verdict = judge(measured("gguf-q4_k_m", 1.2345, 0, 1), 4, QUALITY_LIMITS)[0]
    assert verdict.reason == "perplexity ratio 1.2345, at most 1.15 asked of 4-bit variants"
