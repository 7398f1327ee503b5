"""When a call to the Hub is repeated and how long to wait: one policy, in one place.

The `huggingface_hub` client repeats some calls by itself (1, 2, 4, 8, 8 s, and without an upper bound where the Hub names a time)
and others never. `install()` gives it a session that lifts every passing failure of hubquant's own requests out as
`Transient`, which the client does not catch; so `Retry` alone decides. Requests of other libraries in the process are
left as they are: ours are known by their user agent. Uploads of file bodies carry no user agent and keep the client's own
repetition, since only the client can rewind the file; there the wait that a server may ask for is capped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.utils import get_session, httpx, parse_ratelimit_headers, set_client_factory

LIBRARY = "hubquant"
TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
TRANSIENT_ERRORS = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
# Several endpoints are called without a timeout: a connection that hangs would stop a worker for ever.
TIMEOUT_SECONDS = {"connect": 20.0, "read": 300.0, "write": 300.0, "pool": 300.0}
BODY_WAIT_CAP_SECONDS = 300


class Transient(Exception):
    """One request failed in a way that may pass; it may have had its effect. `wait_seconds`: what the Hub asked for."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True)
class Retry:
    """`attempts` in all; waits of base, 2·base, 4·base … up to `max_seconds`; what the Hub asks for up to `max_asked_seconds`."""

    attempts: int = 6
    base_seconds: float = 1.0
    max_seconds: float = 60.0
    max_asked_seconds: float = 300.0

    def wait_seconds(self, attempt: int, asked_seconds: float | None) -> float:
        """After the failure of `attempt` (from 1)."""
        if asked_seconds is not None:
            return min(asked_seconds, self.max_asked_seconds)
        return min(self.base_seconds * 2.0 ** (attempt - 1), self.max_seconds)


def asked_seconds(headers: Mapping[str, str]) -> float | None:
    """What `RateLimit: "api";r=0;t=N` or `Retry-After: N` asks for; one second more, since N is rounded down."""
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    after = headers.get("retry-after", "").strip()
    return int(after) + 1.0 if after.isdigit() else None


class Session(httpx.Client):
    """The client's session, which raises `Transient` for hubquant's own requests."""

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        if not request.headers.get("user-agent", "").startswith(f"{LIBRARY}/"):
            return _cap_body_wait(super().send(request, **options))
        given = request.extensions.get("timeout") or {}
        bounded = {kind: given.get(kind) or seconds for kind, seconds in TIMEOUT_SECONDS.items()}
        request.extensions = {**request.extensions, "timeout": bounded}
        try:
            response = super().send(request, **options)
        except TRANSIENT_ERRORS as error:
            raise Transient(f"{type(error).__name__}: {error}") from error
        if response.status_code in TRANSIENT_STATUS:
            response.close()
            raise Transient(f"HTTP {response.status_code}", asked_seconds(response.headers))
        return response


def _cap_body_wait(response: httpx.Response) -> httpx.Response:
    if response.request.method == "PUT" and (asked_seconds(response.headers) or 0) > BODY_WAIT_CAP_SECONDS:
        response.headers.pop("ratelimit", None)
        response.headers["retry-after"] = str(BODY_WAIT_CAP_SECONDS)
    return response


def install() -> None:
    """Make the process's Hub session one of ours; harmless when it is. A custom client factory must be set after that."""
    current = get_session()
    if isinstance(current, Session):
        return
    hooks = current.event_hooks
    set_client_factory(lambda: Session(event_hooks=hooks, follow_redirects=True, timeout=None))
