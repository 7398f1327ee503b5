"""Running the local Hub: in a thread for tests and the demo, or as a process of its own."""

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hubquant.errors import HubError, UsageError
from hubquant.hub.local.accounts import DEFAULT_USERS, User, read_users
from hubquant.hub.local.app import create_app
from hubquant.hub.local.faults import Faults, RequestLog
from hubquant.hub.local.front import Front
from hubquant.hub.local.state import HubState

START_TIMEOUT_SECONDS = 20
LOOPBACK = frozenset({"127.0.0.1", "localhost"})

Connections = dict[tuple[str, int], asyncio.BaseTransport]


def _protocol(connections: Connections) -> type[asyncio.Protocol]:
    """An HTTP protocol that knows its open connections by the client's address, so that a test can cut one."""

    class TrackedProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections[transport.get_extra_info("peername")[:2]] = transport

        def connection_lost(self, exc: Exception | None) -> None:
            connections.pop(self.transport.get_extra_info("peername")[:2], None)
            super().connection_lost(exc)

    return TrackedProtocol


def _listen(host: str, port: int) -> socket.socket:
    """Raises HubError if the address is taken."""
    try:
        listening = socket.create_server((host, port), backlog=128, reuse_port=False)
    except OSError as error:
        raise HubError(f"the local Hub cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    # asyncio does so only for sockets that it opens itself; without it every answer waits 40 ms for the client's acknowledgement
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


class _Listener:
    """One HubState behind one socket."""

    def __init__(self, hub: HubState, host: str, port: int, test_hooks: bool) -> None:
        connections: Connections = {}

        def cut(client: tuple[str, int]) -> None:
            transport = connections.get(client)
            if isinstance(transport, asyncio.Transport):
                transport.abort()

        self.socket = _listen(host, port)
        hub.url = f"http://{host}:{self.socket.getsockname()[1]}"
        front = Front(create_app(hub, test_hooks), hub, cut, test_hooks)
        config = uvicorn.Config(
            front,
            http=_protocol(connections),
            ws="none",
            lifespan="off",
            log_level="warning",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        self.server = uvicorn.Server(config)

    def run(self) -> None:
        self.server.run(sockets=[self.socket])
        self.socket.close()


class LocalHub:
    """A Hub on 127.0.0.1 in a background thread: `with LocalHub(folder) as hub: HfApi(endpoint=hub.url, token="hf_demo_bot")`.

    `port` 0 takes a free one. `page_size`: most records per answer of a listing. With `test_hooks`, `faults` strike and the
    addresses under /_test/ exist. Large files go through LFS: set HF_HUB_DISABLE_XET=1 before importing huggingface_hub.
    Raises UsageError for an unusable folder, HubError if the port is taken.
    """

    def __init__(
        self,
        root: Path,
        port: int = 0,
        users: Sequence[User] = DEFAULT_USERS,
        page_size: int = 100,
        test_hooks: bool = False,
    ) -> None:
        self._root, self._port, self._users, self._page_size, self._test_hooks = root, port, users, page_size, test_hooks
        self._state: HubState | None = None
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> HubState:
        """The Hub behind the server. Raises HubError before `start()`."""
        if self._state is None:
            raise HubError("the local Hub has not been started: call start() or use it in a with statement")
        return self._state

    @property
    def url(self) -> str:
        return self.state.url

    @property
    def faults(self) -> Faults:
        return self.state.faults

    @property
    def requests(self) -> RequestLog:
        return self.state.requests

    def start(self) -> "LocalHub":
        self._state = HubState(self._root, self._users, self._page_size)
        try:
            self._listener = _Listener(self._state, "127.0.0.1", self._port, self._test_hooks)
        except HubError:
            self._state.close()
            raise
        self._thread = threading.Thread(target=self._listener.run, name="local-hub", daemon=True)
        self._thread.start()
        waited = threading.Event()
        for _ in range(START_TIMEOUT_SECONDS * 100):
            if self._listener.server.started:
                return self
            if not self._thread.is_alive():
                break
            waited.wait(0.01)
        self.stop()
        raise HubError(f"the local Hub did not start within {START_TIMEOUT_SECONDS} seconds")

    def stop(self) -> None:
        """Ends the server and releases the folder; harmless when it is not running."""
        if self._listener is not None and self._thread is not None:
            self._listener.server.should_exit = True
            self._thread.join(timeout=10)
        if self._state is not None:
            self._state.close()
        self._listener = self._thread = None

    def __enter__(self) -> "LocalHub":
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def serve(
    root: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    users: Sequence[User] | None = None,
    page_size: int = 100,
    test_hooks: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a folder until interrupted; KeyboardInterrupt is raised after a clean stop.

    `users` default to users.json in the folder, else DEFAULT_USERS; `ready` gets the address.

    Raises UsageError for an unusable folder, and for the default users (whose tokens everybody knows) on an address that is not
    loopback; HubError if the port is taken.
    """
    users_file = root / "users.json"
    if users is None:
        users = read_users(users_file) if users_file.exists() else DEFAULT_USERS
    if host not in LOOPBACK and tuple(users) == DEFAULT_USERS:
        raise UsageError(
            f"the built-in users must not be reachable from other machines: write {users_file} before serving on {host}"
        )
    hub = HubState(root, users, page_size)
    try:
        listener = _Listener(hub, host, port, test_hooks)
        if ready is not None:
            ready(hub.url)
        listener.run()
    finally:
        hub.close()
