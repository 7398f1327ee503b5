"""The Hub's time: UTC in milliseconds, never the same twice, so that sorting by time is a total order."""

import threading
import time
from datetime import UTC, datetime


class Clock:
    """`offset_seconds` shifts it, for tests of cooldowns and watermarks."""

    def __init__(self) -> None:
        self.offset_seconds = 0.0
        self._last_ms = 0
        self._lock = threading.Lock()

    def now(self) -> str:
        """ISO 8601 with milliseconds and Z, as the Hub writes it; later than any answer before unless the offset went back."""
        with self._lock:
            wanted = int((time.time() + self.offset_seconds) * 1000)
            if self._last_ms - 1000 < wanted <= self._last_ms:
                wanted = self._last_ms + 1
            self._last_ms = wanted
        return datetime.fromtimestamp(wanted / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
