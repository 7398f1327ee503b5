"""The fixed-window rate limit: per token, or per address for the anonymous."""

import threading
import time
from dataclasses import dataclass

WINDOW_SECONDS = 300


@dataclass(frozen=True)
class Allowance:
    limit: int
    remaining: int  # after this request; -1: this request is one too many
    reset_seconds: int

    @property
    def headers(self) -> dict[str, str]:
        return {
            "RateLimit": f'"api";r={max(self.remaining, 0)};t={self.reset_seconds}',
            "RateLimit-Policy": f'"fixed window";"api";q={self.limit};w={WINDOW_SECONDS}',
        }


class RateLimit:
    """`quota` requests per window for each caller. The default never gets in anybody's way."""

    def __init__(self, quota: int = 100_000) -> None:
        self.quota = quota
        self._window = -1
        self._used: dict[str, int] = {}
        self._lock = threading.Lock()

    def take(self, caller: str) -> Allowance:
        now = time.time()
        window = int(now // WINDOW_SECONDS)
        with self._lock:
            if window != self._window:
                self._window, self._used = window, {}
            self._used[caller] = self._used.get(caller, 0) + 1
            remaining = max(self.quota - self._used[caller], -1)
        return Allowance(self.quota, remaining, int((window + 1) * WINDOW_SECONDS - now) + 1)
