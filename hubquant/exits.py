"""How a command ends. Exit codes: 0 done, 1 a known error in one sentence, 2 usage, 3 a bug (the log is named), 130 interrupted."""

import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from hubquant import __version__
from hubquant.errors import HubquantError, UsageError

# packages that may be missing, and the extra that brings each
EXTRAS = {"dbos": "bot", "fastapi": "bot", "uvicorn": "bot", "multipart": "bot", "python_multipart": "bot"}


def run(command: Callable[[], object]) -> None:
    """The command, and at the outermost edge of it a sentence and an exit code of every error. Raises SystemExit alone."""
    with _noted_interrupts() as interrupts:
        try:
            command()
        except KeyboardInterrupt:
            _interrupted()
        except SystemExit as end:  # typer's own end of a command that Ctrl-C met
            if end.code == 130:
                _interrupted()
            raise
        except Exception as error:
            if interrupts:
                _interrupted()
            _failed(error)


def _failed(error: Exception) -> NoReturn:
    if isinstance(error, HubquantError):
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        wanted = f"pip install 'hubquant[{EXTRAS[error.name]}]'"
        print(f"error: this needs the package {error.name}; install it with: {wanted}", file=sys.stderr)
        sys.exit(UsageError.exit_code)
    print(f"bug: {type(error).__name__}: {error}; the full log is {_log()}", file=sys.stderr)
    sys.exit(3)


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """A list that grows by one with every Ctrl-C: some C extensions turn a KeyboardInterrupt into an error of their own."""
    met: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        met.append(number)
        signal.default_int_handler(number, frame)

    noted = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if noted:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield met
    finally:
        if noted:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted() -> NoReturn:
    print("interrupted", file=sys.stderr)
    sys.exit(130)


def _log() -> Path:
    """Write the current exception, with versions, to a file of its own."""
    with tempfile.NamedTemporaryFile("w", prefix="hubquant-bug-", suffix=".log", delete=False) as file:
        file.write(f"hubquant {__version__}, python {sys.version}\n{' '.join(sys.argv)}\n\n{traceback.format_exc()}")
    return Path(file.name)
