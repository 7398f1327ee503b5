"""Answers that are looked up in the background, so that the page waits neither for the Hub nor for the queue."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hubquant.errors import HubquantError

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer(Generic[T]):
    """`value`: the last one that was found, None before the first. `error`: why the latest look-up found none, "" if it did."""

    value: T | None = None
    error: str = ""


class Cached(Generic[T]):
    """`look_up()`, at most once in `seconds` however many visitors ask, one at a time, in a thread of its own."""

    def __init__(self, look_up: Callable[[], T], seconds: float) -> None:
        self._look_up = look_up
        self._seconds = seconds
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        self._due = float("-inf")
        self._answer: Answer[T] = Answer()

    def get(self, patience: float = 0.0) -> Answer[T]:
        """What is known now; waits up to `patience` seconds for the look-up that is under way if it is older than `seconds`."""
        with self._lock:
            if self._idle.is_set() and time.monotonic() >= self._due:
                self._idle.clear()
                threading.Thread(target=self._refresh, daemon=True).start()
        self._idle.wait(patience)
        return self._answer

    def _refresh(self) -> None:
        try:
            self._answer = Answer(self._look_up())
        except HubquantError as error:
            self._answer = Answer(self._answer.value, str(error))
        except Exception:  # the thread's outermost edge
            log.exception("a look-up of the page failed")
            self._answer = Answer(self._answer.value, "this could not be looked up; the log of the page says why")
        finally:
            self._due = time.monotonic() + self._seconds
            self._idle.set()
