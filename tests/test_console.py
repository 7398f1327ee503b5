from io import StringIO

import pytest
from rich.console import Console

from hubquant.artifact import Artifact, Base, Evaluation, Protocol, Report, TensorRecord, Verdict
from hubquant.console import protocol_line, report_tables, size
from hubquant.recipe import Recipe

PROTOCOL = Protocol(
    name="gptq-512", window=512, stride=512, bos="as tokenized", scored="all", text="prose", text_sha256="ab" * 32, n_tokens=16352
)


def shown(report: Report) -> str:
    console = Console(width=160, record=True, file=StringIO())
    for part in report_tables(report):
        console.print(part)
    return console.export_text()


def report(measured: bool) -> Report:
    tensors = (TensorRecord(name="model.layers.0.mlp.down_proj.weight", type="F16", note="kept in 16 bit"),)
    artifact = Artifact(
        variant="gguf-q4_k_m", folder="gguf", files={"m.gguf": "0" * 64}, size_bytes=2_390_656, bits_per_weight=5.2, tensors=tensors
    )
    evaluation = Evaluation(
        variant="gguf-q4_k_m", protocol=PROTOCOL, perplexity=11, base_perplexity=10,
        mean_kl=0.5, p99_kl=1, p999_kl=1, max_kl=1, top1_agreement=0.9,
    )  # fmt: skip
    verdict = Verdict(variant="gguf-q4_k_m", check="mean KL divergence", value=0.5, limit=0.15, passed=False, reason="too much")
    return Report(
        hubquant_version="0", versions={}, base=Base(repo_id="o/m", revision="", fingerprint="f"), recipe=Recipe(),
        artifacts=(artifact,), evaluations=(evaluation,) if measured else (), verdicts=(verdict,) if measured else (),
        notes=("gguf-q8_0 not made: because",),
    )  # fmt: skip


def test_a_number_stands_with_its_protocol() -> None:
    text = shown(report(measured=True))
    assert "1.1000" in text and "0.50000" in text and "90.0 %" in text and "2.4 MB" in text
    assert all(word in " ".join(text.split()) for word in ("windows of 512", "BOS as tokenized", "16,352 tokens", "abababababab"))


def test_what_deviates_and_what_was_stopped_is_said() -> None:
    text = shown(report(measured=True))
    assert "gguf-q8_0 not made: because" in text
    assert "model.layers.0.mlp.down_proj.weight: kept in 16 bit" in text
    assert "stopped by the gate: gguf-q4_k_m: too much" in text


def test_what_was_not_measured_is_said() -> None:
    assert "not measured yet" in shown(report(measured=False))


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_390_656, "2.4 MB"), (5e9, "5.0 GB"), (3e13, "30.0 TB")]
)
def test_sizes(n: float, text: str) -> None:
    assert size(n) == text


def test_the_protocol_line_says_all_that_must_be_equal() -> None:
    other = PROTOCOL.model_copy(update={"scored": "second half"})
    assert protocol_line(PROTOCOL) != protocol_line(other)
