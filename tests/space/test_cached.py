"""A cached look-up: nobody waits longer than they want to, the same thing is not asked twice, failures become sentences."""

import threading
import time
from collections.abc import Callable

import pytest
from cached import Answer, Cached

from hubquant.errors import HubUnavailable


def test_it_answers_at_once_and_looks_up_behind() -> None:
    gate, calls = threading.Event(), []

    def look_up() -> int:
        calls.append(1)
        gate.wait(10)
        return len(calls)

    cached = Cached(look_up, seconds=60)
    started = time.monotonic()
    assert [cached.get() for _ in range(5)] == [Answer()] * 5
    assert cached.get(patience=0.2) == Answer()
    assert time.monotonic() - started < 2
    gate.set()
    assert cached.get(patience=10) == Answer(1)
    assert cached.get(patience=10) == Answer(1), "within 60 s it is not looked up again"
    assert len(calls) == 1


def test_an_old_answer_is_looked_up_again() -> None:
    numbers = iter(range(9))
    cached = Cached(lambda: next(numbers), seconds=0)
    assert [cached.get(patience=10).value for _ in range(3)] == [0, 1, 2]


def _raise(error: Exception) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [(HubUnavailable("the Hub sleeps"), "the Hub sleeps"), (KeyError("a bug"), "this could not be looked up")],
)
def test_a_failure_is_a_sentence_beside_the_last_value(error: Exception, sentence: str) -> None:
    results: list[Callable[[], int]] = [lambda: 7, lambda: _raise(error), lambda: 8]
    cached = Cached(lambda: results.pop(0)(), seconds=0)
    assert cached.get(patience=10) == Answer(7)
    failed = cached.get(patience=10)
    assert failed.value == 7
    assert sentence in failed.error
    assert cached.get(patience=10) == Answer(8)
