"""How commands end: what is said, and the exit code."""

import signal
from pathlib import Path

import pytest

from hubquant import exits


def test_a_bug_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def bug() -> None:
        raise RuntimeError("out of cheese")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        exits.run(bug)
    assert stopped.value.code == 3
    log = next(tmp_path.glob("hubquant-bug-*.log"))
    assert str(log) in capsys.readouterr().err and "out of cheese" in log.read_text() and "Traceback" in log.read_text()


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'dbos'", name="dbos")

    with pytest.raises(SystemExit) as stopped:
        exits.run(missing)
    assert stopped.value.code == 2 and "pip install 'hubquant[bot]'" in capsys.readouterr().err


def test_an_interruption_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        exits.run(interrupted)
    assert stopped.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_an_interruption_that_an_extension_turned_into_its_own_error_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """torch's own: "could not determine the shape of object type", while it reads a tensor."""

    def interrupted() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stopped:
            exits.run(interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 130 and capsys.readouterr().err == "interrupted\n"
