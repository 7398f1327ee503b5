"""The heavy steps as subprocesses: a cancelled job can be stopped, a crash or an out-of-memory kill takes only the step."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from hubquant.bot import leash
from hubquant.errors import HubquantError
from hubquant.recipe import Frozen

POLL_SECONDS = 0.25
LOG_TAIL = 10_000  # characters of a failed command's output that the bot's log keeps
# The heavy steps read a model folder and write an output folder; they get neither the token nor the network's address of the Hub.
WITHHELD = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE")
log = logging.getLogger(__name__)


class Progress(Frozen):
    """What a heavy step writes to progress.json while it works."""

    stage: str
    done: int
    total: int


def run(
    command: Sequence[str], folder: Path, name: str, on_progress: Callable[[Progress], None], check: Callable[[], None]
) -> None:
    """Runs `command` to its end; its output goes to FOLDER/NAME.log, its progress is read from FOLDER/out/progress.json.

    `check` is called several times a second; what it raises ends the command (with its whole process group) and passes on.
    Raises HubquantError with the command's own sentence when it fails. One command at a time per folder.
    """
    log_file, progress_file = folder / f"{name}.log", folder / "out" / "progress.json"
    progress_file.unlink(missing_ok=True)  # of the step before
    wrapped = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), str(folder / "step.lock"), *command]
    with log_file.open("wb") as output:
        # a group of its own: Ctrl-C in the bot's terminal does not reach it, killpg reaches all of it
        process = subprocess.Popen(
            wrapped, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output, env=_environment(), process_group=0
        )
    last: Progress | None = None
    try:
        while not _ended(process):
            check()
            progress = _progress(progress_file)
            if progress is not None and progress != last:
                on_progress(progress)
                last = progress
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        said = log_file.read_text(errors="replace")
        log.error("%s ended with %d in %s:\n%s", name, process.returncode, folder, said[-LOG_TAIL:])
        raise HubquantError(_sentence(name, process.returncode, said))


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in WITHHELD}
    return kept | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "PYTHONUNBUFFERED": "1"}


def _ended(process: "subprocess.Popen[bytes]") -> bool:
    try:
        process.wait(timeout=POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _progress(file: Path) -> Progress | None:
    try:
        return Progress.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _sentence(name: str, code: int, said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1].removeprefix("error: ").removeprefix("bug: ") if lines else "it said nothing"
    if code in (1, 2):
        return last
    if code < 0:
        hint = " (the system was out of memory?)" if -code == signal.SIGKILL else ""
        return f"{name} was ended by {signal.Signals(-code).name}{hint}; retry the job, or leave this model out"
    return f"{name} failed with a bug in hubquant (exit code {code}): {last}"
