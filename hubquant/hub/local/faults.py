"""Test hooks: refuse or cut chosen requests, and a log of all of them."""

import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Drop = Literal["before", "after"]


@dataclass
class Fault:
    """What happens to a request whose method and path match (`re.search` on the path as sent, without the query).

    The first `skip` matching requests pass, the next `times` are hit. With `drop` the connection is cut, before the request
    is handled or after it was, in place of its answer; else `status` is answered with `headers`. `delay_seconds` comes first;
    with status 0 and no drop it is all that happens.
    """

    path: str = ""
    method: str = ""
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "Injected fault"
    times: int = 1
    skip: int = 0
    drop: Drop | None = None
    delay_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._path = re.compile(self.path)
        self._method = re.compile(self.method, re.IGNORECASE)

    def matches(self, method: str, path: str) -> bool:
        return self._method.search(method) is not None and self._path.search(path) is not None


class Faults:
    """The faults in force, in the order they were given; the first that matches and is not used up decides."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def inject(
        self,
        path: str = "",
        method: str = "",
        *,
        status: int = 503,
        headers: Mapping[str, str] | None = None,
        message: str = "Injected fault",
        times: int = 1,
        skip: int = 0,
        delay_seconds: float = 0.0,
    ) -> Fault:
        """Answer `status` to `times` matching requests after letting `skip` of them pass."""
        fault = Fault(path, method, status, dict(headers or {}), message, times, skip, None, delay_seconds)
        return self.add(fault)

    def drop(self, path: str = "", method: str = "", *, when: Drop = "before", times: int = 1, skip: int = 0) -> Fault:
        """Cut the connection of `times` matching requests, before or after handling them."""
        return self.add(Fault(path, method, times=times, skip=skip, drop=when))

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def __iter__(self) -> Iterator[Fault]:
        """Those that can still strike."""
        with self._lock:
            return iter([fault for fault in self._faults if fault.times > 0])

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for this request, which counts as used."""
        with self._lock:
            for fault in self._faults:
                if fault.times <= 0 or not fault.matches(method, path):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None


@dataclass(frozen=True)
class Request:
    """One line of the log. `path` as sent, percent-encoded; `status` 0: the connection was cut."""

    method: str
    path: str
    status: int
    query: str = ""


class RequestLog:
    """The last requests, oldest first. Test hooks themselves are not logged."""

    def __init__(self, kept: int = 10_000) -> None:
        self._requests: deque[Request] = deque(maxlen=kept)

    def add(self, request: Request) -> None:
        self._requests.append(request)

    def clear(self) -> None:
        self._requests.clear()

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests))

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, index: int) -> Request:
        return self._requests[index]

    def find(self, path: str = "", method: str = "") -> list[Request]:
        """Those whose path and method match the regular expressions."""
        wanted = Fault(path, method)
        return [request for request in self if wanted.matches(request.method, request.path)]
