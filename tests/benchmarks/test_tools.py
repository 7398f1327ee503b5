"""Running tools, without any: the processes are Python's own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from peers.calibration import Calibration, excerpt, prepare
from peers.tools import Failed, Job, _artifact, plan

from hubquant.calibrate.source import read_text
from hubquant.calibrate.text import load_tokenizer

MEASURE = str(Path(__file__).parent / "peers" / "measure.py")


@pytest.fixture
def job(tmp_path: Path, bundled: Path) -> Job:
    calibration = Calibration(tmp_path / "text", tmp_path / "ids", 4, 64, {})
    return Job(bundled, calibration, tmp_path / "work", threads=1, iterations=200)


def took(log: Path, code: str) -> dict[str, float]:
    """The figures of `python -c code`, from a process of their own as in a run: a large parent's memory would count."""
    command = [sys.executable, MEASURE, str(log), sys.executable, "-c", code]
    figures: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def test_memory_and_cpu_time_are_the_childs_own(tmp_path: Path) -> None:
    # the child holds 100 MB for a while and computes; the grandchild's time is counted too
    code = "import subprocess, sys; b = bytes(range(256)) * 400_000; sum(range(3_000_000)); "
    code += "subprocess.run([sys.executable, '-c', 'sum(range(3_000_000))'])"
    small, large = took(tmp_path / "small.log", "pass"), took(tmp_path / "large.log", code)
    assert small["exit_code"] == large["exit_code"] == 0
    assert 95e6 < large["peak_bytes"] - small["peak_bytes"] < 130e6
    assert large["cpu_seconds"] > 1.3 * took(tmp_path / "alone.log", "sum(range(3_000_000))")["cpu_seconds"]
    assert large["wall_seconds"] > 0
    assert took(tmp_path / "failed.log", "raise SystemExit(3)")["exit_code"] == 3


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ValueError('no scales in /some/folder/model.bin')", "ValueError: no scales in …/model.bin"),
        ("import sys; print('x' * 999); sys.exit('no such option')", "no such option"),
        ("import sys; print('torch.OutOfMemoryError: ' + 'y' * 999); sys.exit('bye')", "torch.OutOfMemoryError: " + "y" * 216),
        ("import sys; sys.exit(2)", "no output"),
    ],
)
def test_a_tool_that_fails_is_quoted_without_folders(job: Job, code: str, said: str) -> None:
    with pytest.raises(Failed) as caught:
        job.run("it", [sys.executable, "-c", code])
    assert str(caught.value) == said


def test_threads_are_told_to_the_tool(job: Job) -> None:
    job.run("it", [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['HF_HUB_OFFLINE'])"])
    assert (job.folder / "it.log").read_text() == "1 1\n"


def test_a_shared_step_runs_once_and_keeps_its_figures(job: Job) -> None:
    made = job.folder / "made"
    code = f"import pathlib; p = pathlib.Path({str(made)!r}); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
    command = [sys.executable, "-c", code]
    first, second = (job.once("convert", made, command) for _ in range(2))
    assert first == second
    assert first.shared
    assert made.read_text() == "x"
    made.write_text("of a run that was stopped")
    job.once("convert", made, command, told="other settings")
    assert made.read_text() == "x"


def test_variants_say_what_is_wanted() -> None:
    assert plan("gptq-int3-g128") == {"format": "gptq", "bits": 3, "group_size": 128, "symmetric": True}
    assert plan("awq-int4-g128")["symmetric"] is False
    assert plan("gguf-q4_k_m") == {"format": "gguf", "mixture": "Q4_K_M"}
    with pytest.raises(ValueError, match="exl2-4"):
        plan("exl2-4")


def test_what_a_tool_wrote_is_found_below_its_folder(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="nothing was written"):
        _artifact(tmp_path)
    (tmp_path / "model-w4g128").mkdir()
    (tmp_path / "model-w4g128" / "model.safetensors").touch()
    assert _artifact(tmp_path) == tmp_path / "model-w4g128"
    for name in ("imatrix.gguf", "model-Q4_0.gguf"):
        (tmp_path / name).touch()
    assert _artifact(tmp_path) == tmp_path / "model-Q4_0.gguf"


def test_the_calibration_text_is_its_windows(bundled: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(bundled)
    made = prepare(bundled, "prose-calib", 6, 64, tmp_path)
    ids = json.loads(made.ids.read_text())
    assert [len(window) for window in ids] == [64] * 6
    assert tokenizer(made.text.read_text())["input_ids"] == [token for window in ids for token in window]
    text = read_text("prose-calib")
    pieces = [made.text.read_text()[i : i + 40] for i in (0, len(made.text.read_text()) // 2, len(made.text.read_text()) - 60)]
    places = [text.find(piece) / len(text) for piece in pieces]
    assert places[0] < 0.01
    assert 0.3 < places[1] < 0.7
    assert places[2] > 0.9
    with pytest.raises(SystemExit, match="too few for 60 windows"):
        excerpt(tokenizer, text[:4000], 60, 64)
