"""Subprocesses that end with their parent, their job, or their own sentence."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from hubquant.bot import heavy
from hubquant.errors import HubquantError

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


class Cancelled(Exception):
    pass


def quiet(progress: heavy.Progress) -> None:
    pass


def script(text: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text)]


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_progress_is_told_and_the_command_runs_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    heard: list[heavy.Progress] = []
    work = f"""
        import json, os, time
        for done in (1, 2):
            with open({str(tmp_path / "out/p")!r}, "w") as file:
                json.dump({{"stage": "layer", "done": done, "total": 2}}, file)
            os.replace({str(tmp_path / "out/p")!r}, {str(tmp_path / "out/progress.json")!r})
            time.sleep(0.6)
    """
    heavy.run(script(work), tmp_path, "quantize", heard.append, lambda: None)
    assert [(p.stage, p.done, p.total) for p in heard] == [("layer", 1, 2), ("layer", 2, 2)]


@pytest.mark.parametrize(
    ("code", "said", "sentence"),
    [
        (
            1,
            "warning: slow\nerror: layer 3 of org/m holds NaN; nothing was written\n",
            "layer 3 of org/m holds NaN; nothing was written",
        ),
        (2, "unknown variant 'x'", "unknown variant 'x'"),
        (3, "bug: KeyError: 'q'", "quantize failed with a bug in hubquant (exit code 3): KeyError: 'q'"),
        (3, "", "quantize failed with a bug in hubquant (exit code 3): it said nothing"),
    ],
)
def test_the_command_s_sentence_becomes_the_error(tmp_path: Path, code: int, said: str, sentence: str) -> None:
    with pytest.raises(HubquantError) as caught:
        heavy.run(script(f"import sys; sys.stderr.write({said!r}); sys.exit({code})"), tmp_path, "quantize", quiet, lambda: None)
    assert str(caught.value) == sentence


def test_a_command_killed_from_outside_is_an_error_that_names_the_signal(tmp_path: Path) -> None:
    with pytest.raises(HubquantError, match=r"ended by SIGKILL.*memory"):
        heavy.run(script("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), tmp_path, "quantize", quiet, lambda: None)


def test_what_check_raises_ends_the_whole_group(tmp_path: Path) -> None:
    children = tmp_path / "children"
    work = f"""
        import os, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open({str(children)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
        time.sleep(60)
    """

    def check() -> None:
        if children.exists() and children.read_text():
            raise Cancelled

    with pytest.raises(Cancelled):
        heavy.run(script(work), tmp_path, "quantize", quiet, check)
    wait_for(lambda: not any(alive(int(pid)) for pid in children.read_text().split()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a process to its parent's life")
def test_kill_9_of_the_parent_kills_the_command(tmp_path: Path) -> None:
    parent = f"""
        from pathlib import Path
        from hubquant.bot import heavy
        heavy.run({SLEEP!r}, Path({str(tmp_path)!r}), "quantize", print, lambda: None)
    """
    process = subprocess.Popen(script(parent))
    try:
        wait_for(lambda: bool(sleepers(process.pid)), seconds=30)
        [child] = sleepers(process.pid)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    wait_for(lambda: not alive(child))


def test_the_second_command_waits_for_one_that_outlived_its_worker(tmp_path: Path) -> None:
    """As on systems that do not kill it with its parent: the lock is inherited by the command."""
    marker = tmp_path / "first-ended"
    first = script(f"import time; time.sleep(1.5); open({str(marker)!r}, 'w')")
    leashed = [sys.executable, "-I", "-S", heavy.leash.__file__, str(os.getpid()), str(tmp_path / "step.lock"), *first]
    process = subprocess.Popen(leashed)
    wait_for(lambda: (tmp_path / "step.lock").exists())
    time.sleep(0.2)
    heavy.run(script(f"import os, sys; sys.exit(not os.path.exists({str(marker)!r}))"), tmp_path, "quantize", quiet, lambda: None)
    assert process.wait() == 0


def test_the_command_is_not_given_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    heavy.run(
        script("import os, sys; sys.exit('HF_TOKEN' in os.environ or os.environ['HF_HUB_OFFLINE'] != '1')"),
        tmp_path, "quantize", quiet, lambda: None,
    )  # fmt: skip


def sleepers(parent: int) -> list[int]:
    """The commands (not the leash before it becomes one) below a process."""
    try:
        below = psutil.Process(parent).children()
        return [child.pid for child in below if "time.sleep(60)" in " ".join(child.cmdline()) and "-I" not in child.cmdline()]
    except psutil.NoSuchProcess:
        return []


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
