from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peers.results import Results, Row, Step, models
from peers.tables import TO_NEAREST, full_table, goal_table, model_tables, order, scores, speed

from hubquant.artifact import Evaluation, Protocol

PROTOCOL = Protocol(
    name="gptq-512", window=512, stride=512, bos="as tokenized", scored="all", text="eval.txt", text_sha256="0" * 64, n_tokens=511
)  # fmt: skip


def row(tool: str, variant: str, mean_kl: float | None, bits: float = 4.16, **more: Any) -> Row:
    measured = mean_kl is not None
    evaluation = Evaluation(
        variant=variant, protocol=PROTOCOL, perplexity=11.0, base_perplexity=10.0, mean_kl=mean_kl or 0.0, p99_kl=0.1,
        p999_kl=0.2, max_kl=0.3, top1_agreement=0.9,
    )  # fmt: skip
    calibration = {"text": "calib.txt", "windows": 64, "window": 512}
    made = Row("tiny", tool, "1.0", variant, "2026-11-27T20:00:00+00:00", "make it", 1, calibration, matrix_bits=bits)
    return replace(made, evaluation=evaluation if measured else None, **more)


def test_the_best_peer_is_the_one_with_the_least_divergence() -> None:
    rows = [row("A", "gptq-int4-g128", 0.2), row("B", "gptq-int4-g128", 0.1), row("hubquant", "gptq-int4-g128", 0.09)]
    rows += [row("C", "gptq-int4-g128", None, failed="it broke"), row("A", "gguf-q4_0", 0.01)]
    first, second = scores(rows)
    assert first.best is not None
    assert (first.variant, first.best.tool) == ("gptq-int4-g128", "B")
    assert first.ratio == pytest.approx(0.9)
    assert (first.verdict, second.ratio, second.verdict) == ("met", None, "—")


@pytest.mark.parametrize(
    ("ours", "bits", "verdict"),
    [(0.095, 4.16, "met"), (0.096, 4.16, "above 0.95"), (0.11, 4.16, "worse than the peer"), (0.05, 4.2, "more bits")],
)
def test_the_goal_is_five_percent_less_in_no_more_bits(ours: float, bits: float, verdict: str) -> None:
    (score,) = scores([row("A", "gguf-q4_0", 0.1), row("hubquant", "gguf-q4_0", ours, bits)])
    assert score.verdict == verdict


def test_rows_of_different_protocols_do_not_compare() -> None:
    first, other = row("A", "gguf-q4_0", 0.1), row("hubquant", "gguf-q4_0", 0.1)
    assert other.evaluation is not None
    longer = other.evaluation.model_copy(update={"protocol": PROTOCOL.model_copy(update={"n_tokens": 1022})})
    with pytest.raises(ValueError, match="different protocols"):
        scores([first, replace(other, evaluation=longer)])
    with pytest.raises(ValueError, match="different tokens"):
        scores([first, replace(other, calibration={**other.calibration, "excerpt_sha256": "1"})])


def test_gptq_comes_first_then_gguf_by_bits() -> None:
    names = ["gguf-q2_k", "gguf-iq4_xs", "gguf-q8_0", "gptq-int3-g128", "awq-int4-g128", "gptq-int4-g128"]
    ordered = ["gptq-int4-g128", "awq-int4-g128", "gptq-int3-g128", "gguf-q8_0", "gguf-iq4_xs", "gguf-q2_k"]
    assert sorted(names, key=order) == ordered


def test_tables_show_what_was_measured_and_what_was_not() -> None:
    steps = (Step("imatrix", 10.0, 8.0, 3_000_000, shared=True), Step("quantize", 2.0, 1.0, 1_000_000))
    rows = [row("A", "gguf-q4_0", 0.1, settings="20 iterations", steps=steps), row("B", "gguf-q4_0", None, failed="it broke")]
    good, bad = full_table(rows)
    assert good == [
        *("A, 20 iterations", "`gguf-q4_0`", "0.00", "4.16", "1.1000", "0.100000", "0.200", "90.0 %"),
        *("12 s *", "9 s *", "3.0 MB"),
    ]
    assert bad[:5] == ["B", "`gguf-q4_0`", "—", "—", "not made"]
    assert goal_table(rows) == [["`gguf-q4_0`", "A, 20 iterations", "0.100000", "4.16", "—", "—", "—", "—"]]


def test_time_is_compared_variant_by_variant_and_shared_steps_once() -> None:
    shared, one_pass = Step("imatrix", 9.0, 8.0, 1, shared=True), Step("one pass for 2", 9.0, 6.0, 1, shared=True)
    rows = [row("A", v, 0.1, steps=(shared, Step("quantize", 3.0, 2.0, 1))) for v in ("gguf-q4_0", "gguf-q8_0")]
    rows += [row("B", "gguf-q4_0", 0.1, steps=(Step("slow", 99.0, 99.0, 1),)), row("A", "gguf-q2_k", 0.1, steps=(shared,))]
    assert speed(rows) == ""
    rows += [row("hubquant", v, 0.1, steps=(one_pass,)) for v in ("gguf-q4_0", "gguf-q8_0", "gguf-q6_k")]
    assert speed(rows) == "CPU time for these 2 variants: hubquant 6 s, the fastest peer for each (A) 12 s: 0.50 of it."


def test_who_rounds_to_nearest_is_set_apart() -> None:
    tools = (("A", 30.0), (TO_NEAREST, 4.0), ("hubquant", 6.0))
    rows = [row(tool, "awq-int4-g128", 0.1, steps=(Step("make", seconds, seconds, 1),)) for tool, seconds in tools]
    assert speed(rows) == (
        "CPU time for these 1 variants: hubquant 6 s, the fastest peer for each (auto-round RTN) 4 s: 1.50 of it. "
        "Without those that round to nearest (A) 30 s: 0.20 of it."
    )


def test_results_are_kept_and_come_back(tmp_path: Path) -> None:
    results = Results("tiny", tmp_path)
    assert results.get("auto-round RTN", "gguf-q4_0") is None
    first = row("auto-round RTN", "gguf-q4_0", 0.1, steps=(Step("it", 2.0, 1.0, 5),))
    failed = row("B", "gguf-q4_0", None, failed="it broke")
    for one in (first, failed):
        results.keep(one)
    assert results.get("auto-round RTN", "gguf-q4_0") == first
    assert {p.name for p in (tmp_path / "tiny").iterdir()} == {"auto-round-rtn.gguf-q4_0.json", "b.gguf-q4_0.json"}
    assert results.rows() == [first, failed]
    Results("other", tmp_path).keep(failed)
    assert models(tmp_path) == ["tiny"]  # of the other nothing was measured
    text = model_tables(results, lambda headings, rows: str(rows))
    for said in (
        "base perplexity 10.000",
        "Not made: B, gguf-q4_0: it broke.",
        "64 windows of 512 tokens of calib.txt",
        "511 tokens",
    ):
        assert said in text
