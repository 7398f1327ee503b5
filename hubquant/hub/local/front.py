"""The outermost layer of the server: request ids, rate limit, faults, the log, and paths whose %2F must survive routing."""

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hubquant.hub.local.faults import Request
from hubquant.hub.local.state import HubState

TEST_PREFIX = "/_test/"


def routable_path(raw_path: bytes) -> str:
    """Decoded but for "/" and "%" inside a segment, so that a revision such as refs%2Fpr%2F1 stays one segment."""
    segments = raw_path.decode("ascii", "replace").split("/")
    return "/".join(unquote(segment).replace("%", "%25").replace("/", "%2F") for segment in segments)


class Front:
    """`cut(client)` aborts the TCP connection from that address. Faults strike only with `test_hooks`."""

    def __init__(self, app: ASGIApp, hub: HubState, cut: Callable[[tuple[str, int]], None], test_hooks: bool) -> None:
        self.app = app
        self.hub = hub
        self.cut = cut
        self.test_hooks = test_hooks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, raw_path = scope["method"], scope["raw_path"]
        scope["path"] = routable_path(raw_path)
        path = raw_path.decode("ascii", "replace")
        if path.startswith(TEST_PREFIX):
            await self.app(scope, receive, send)
            return
        exchange = Exchange(self.hub, scope, send)
        fault = self.hub.faults.take(method, path) if self.test_hooks else None
        if fault is not None and fault.delay_seconds:
            await asyncio.sleep(fault.delay_seconds)
        if fault is not None and fault.drop is not None:
            if fault.drop == "after":
                await self.app(scope, receive, exchange.swallow)
            exchange.log(status=0)
            await self._cut(scope, receive)
        elif fault is not None and fault.status:
            await _read_all(receive)
            await exchange.answer(fault.status, fault.message, fault.headers)
        elif exchange.allowance.remaining < 0:
            await exchange.answer(429, "Too many requests", {"Retry-After": str(exchange.allowance.reset_seconds)})
        else:
            await self.app(scope, receive, exchange.send)

    async def _cut(self, scope: Scope, receive: Receive) -> None:
        host, port = scope["client"]
        self.cut((host, port))
        while (await receive())["type"] != "http.disconnect":
            pass


class Exchange:
    """One request and its answer: logs it, and adds the headers that every answer carries."""

    def __init__(self, hub: HubState, scope: Scope, send: Send) -> None:
        headers = dict(scope["headers"])
        caller = headers.get(b"authorization", scope["client"][0].encode()).decode("latin-1")
        self.allowance = hub.rate_limit.take(caller)
        self._log = hub.requests
        self._scope = scope
        self._send = send
        self._every_answer = {**self.allowance.headers, "X-Request-Id": f"Root={secrets.token_hex(12)}"}

    def log(self, status: int) -> None:
        path, query = (self._scope[name].decode("ascii", "replace") for name in ("raw_path", "query_string"))
        self._log.add(Request(self._scope["method"], path, status, query))

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.log(message["status"])  # before the client can see the answer and read the log
            present = {name.lower() for name, _ in message["headers"]}
            added = [(name.encode(), value.encode()) for name, value in self._every_answer.items()]
            message = {**message, "headers": [*message["headers"], *(pair for pair in added if pair[0].lower() not in present)]}
        await self._send(message)

    async def swallow(self, message: Message) -> None:
        """In place of `send`: the answer is lost."""

    async def answer(self, status: int, message: str, headers: Mapping[str, str]) -> None:
        body = json.dumps({"error": message}).encode()
        sent = {"content-type": "application/json", "content-length": str(len(body)), "x-error-message": message, **headers}
        pairs = [(name.lower().encode(), value.encode()) for name, value in sent.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})


async def _read_all(receive: Receive) -> None:
    """Take the whole request, so that the sender reads the answer instead of failing to write."""
    while (await receive()).get("more_body"):
        pass
