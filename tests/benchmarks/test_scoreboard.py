"""The whole line with the one tool that needs no environment: hubquant's command line, its bytes, the kept row, the tables."""

from math import prod
from pathlib import Path

import pytest
import scoreboard
from peers import artifacts, results
from peers.results import Results
from peers.tools import TOOLS

from hubquant.base import open_base


def options(work: Path, *more: str) -> list[str]:
    return ["--windows", "4", "--window", "64", "--max-tokens", "1024", "--work", str(work), "--tool", "hubquant", *more]


def test_a_row_is_made_measured_kept_and_not_made_twice(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scoreboard, "Results", lambda name: Results(name, tmp_path / "results"))
    asked = scoreboard.parser().parse_args(options(tmp_path / "work", "--variant", "gguf-q4_0"))
    scoreboard.run(bundled, asked)
    (q4_0,) = Results(bundled.name, tmp_path / "results").rows()
    assert (q4_0.variant, q4_0.failed) == ("gguf-q4_0", "")
    assert q4_0.matrix_bits == 4.5  # blocks of 32 codes and one float16
    assert q4_0.evaluation is not None
    assert q4_0.evaluation.protocol.n_tokens == 2 * 511
    assert 0 < q4_0.evaluation.mean_kl < 0.1
    assert q4_0.peak_bytes > 1e8
    assert not list((tmp_path / "work").rglob("*Q4_0.gguf"))  # measured, so removed
    printed = capsys.readouterr().out
    assert "hubquant, gguf-q4_0" in printed
    scoreboard.run(bundled, asked)
    assert "hubquant, gguf-q4_0" not in capsys.readouterr().out
    assert scoreboard.tokens_of([q4_0]) == 1024  # so that a later row compares
    matched = scoreboard.parser().parse_args(options(tmp_path / "work", "--matched", "--again"))
    scoreboard.run(bundled, matched)  # no other tool has a row, so none is made
    assert "hubquant, gguf" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("gptq-int4-g128", 4 + (16 + 4) / 128),  # codes; to 128 of them a float16 scale and a 4-bit zero; the index below
        ("awq-int4-g128", 4 + (16 + 4) / 128),
        ("gguf/*Q8_0.gguf", 8.5),
    ],
)
def test_bits_are_those_of_the_layers_matrices(quantized_demo: Path, bundled: Path, name: str, bits: float) -> None:
    (path,) = quantized_demo.glob(name)
    base = open_base(bundled).decoder()
    index = 0.0
    if name.startswith("gptq"):
        matrices = [shape for n, shape in base.shapes().items() if n.startswith("model.layers.") and len(shape) > 1]
        index = 32 * sum(shape[1] for shape in matrices) / sum(prod(shape) for shape in matrices)
    assert artifacts.matrices_bits(path, base) == pytest.approx(bits + index, abs=1e-9)
    assert artifacts.size_bytes(path) == sum(
        f.stat().st_size for f in quantized_demo.glob(name if path.is_file() else f"{name}/*.saf*")
    )


def test_every_tool_has_variants_that_have_plans() -> None:
    assert all(tool.variants for tool in TOOLS.values())
    assert TOOLS[results.HUBQUANT].environment == "hubquant"
