"""`hubquant kernels bench`: the files it runs, the rows it writes, and what it says without a GPU. Nothing is timed here."""

import csv
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hubquant import cli, kernelbench
from hubquant.errors import HubquantError, UsageError

KERNELS = {"copy", "product", "accumulate_hessian", "gptq_group", "descend", "awq_losses", "divergence", "divergence_of_heads"}


def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(HubquantError, match="no GPU is visible") as raised:
        kernelbench.bench(tmp_path / "bench.csv")
    assert raised.value.exit_code == 1
    result = CliRunner().invoke(cli.app, ["kernels", "bench", "--out", str(tmp_path / "bench.csv")])
    assert isinstance(result.exception, HubquantError)
    assert not (tmp_path / "bench.csv").exists()


def test_every_benchmark_file_offers_cases_that_are_told_apart() -> None:
    found = kernelbench.cases(kernelbench.benchmarks_folder())
    assert len({(case.kernel, case.shape) for case in found}) == len(found)
    assert {case.kernel for case in found} >= KERNELS
    assert all(case.memory_bytes > 0 for case in found)


def test_rows_have_the_figures_and_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU answers is put in; the rest is as it is."""

    def fails() -> None:
        raise RuntimeError("out of memory\nand more lines")

    (tmp_path / "case.py").write_text((kernelbench.benchmarks_folder() / "case.py").read_text())
    (tmp_path / "one.py").write_text("from case import Case\n\ndef cases():\n    return [Case('one', 'small', dict, 2e6, 4e9)]\n")
    monkeypatch.setattr(kernelbench, "FOLDERS", (tmp_path,))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "GPU of a test")
    monkeypatch.setattr(kernelbench, "_time", lambda run, in_graph: run() or kernelbench.Times(2.0, 1.0, 3.0, 2.5))
    (case,) = kernelbench.cases(tmp_path)
    object.__setattr__(case, "prepare", lambda: {"triton": lambda: None, "marlin": fails})
    monkeypatch.setattr(kernelbench, "cases", lambda folder: [case])
    lines: list[str] = []
    assert kernelbench.bench(tmp_path / "bench.csv", progress=lines.append) == 1
    with (tmp_path / "bench.csv").open() as file:
        ours, marlin = csv.DictReader(file)
    assert (ours["ms"], ours["gb_per_s"], ours["tflop_per_s"], ours["error"]) == ("2.00000", "1.0", "2.00", "")
    assert (ours["ms_20"], ours["ms_80"], ours["called_ms"]) == ("1.00000", "3.00000", "2.50000")
    assert (marlin["implementation"], marlin["ms"], marlin["error"]) == ("marlin", "", "RuntimeError: out of memory")
    assert ours["device"] == "GPU of a test"
    assert f"torch {torch.__version__.split('+')[0]}" in ours["versions"]
    assert len(lines) == 2
    with pytest.raises(UsageError, match="'two'"):
        kernelbench.bench(tmp_path / "bench.csv", only="two")
