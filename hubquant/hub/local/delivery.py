"""Sending webhooks: one thread, in order, one attempt each, and a record of what came of it."""

import queue
import threading
import urllib.error
import urllib.request
from collections import deque
from dataclasses import dataclass, replace

TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Delivery:
    """`status`: what the receiver answered; None: not sent yet, or it could not be reached (`error` says why)."""

    webhook_id: str
    url: str
    secret: str | None
    body: str
    status: int | None = None
    error: str | None = None


class DeliveryQueue:
    """Starts its thread with the first delivery. `sent`: the last deliveries, oldest first."""

    def __init__(self) -> None:
        self.sent: deque[Delivery] = deque(maxlen=1000)
        self._waiting: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        # the receiver is named by its address: a proxy of the environment has no part in it
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def put(self, delivery: Delivery) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
                self._thread.start()
        self._waiting.put(delivery)

    def close(self) -> None:
        """Send what is waiting, then end the thread."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(timeout=TIMEOUT_SECONDS)

    def _run(self) -> None:
        while (delivery := self._waiting.get()) is not None:
            self.sent.append(self._send(delivery))

    def _send(self, delivery: Delivery) -> Delivery:
        headers = {"Content-Type": "application/json", "User-Agent": "hubquant-local-hub"}
        if delivery.secret is not None:
            headers["X-Webhook-Secret"] = delivery.secret
        request = urllib.request.Request(delivery.url, delivery.body.encode(), headers, method="POST")
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return replace(delivery, status=answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return replace(delivery, status=error.code)
        except (OSError, ValueError) as error:
            return replace(delivery, error=str(error))
