"""Fixtures for pytest, found by it through the entry point `django_sockets`.

Loaded into every pytest run where the package is installed: it imports the rest when a fixture is
used, needs no other plugin, and has no option and no hook that changes tests without its fixtures.
Coroutine tests may be run by pytest-asyncio, in either mode, or by anyio.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..conf import Config
    from .capture import CapturedBroadcasts
    from .client import SocketClient
    from .live import LiveSocketServer
    from .sync_client import SyncSocketClient

__all__ = [
    "captured_broadcasts",
    "live_socket_server",
    "pytest_runtest_call",
    "socket_client",
    "sockets_broker",
    "sync_socket_client",
]


@pytest.fixture
def sockets_broker() -> Iterator[Config]:
    """`override_broker` for one test: an in-memory broker that no other test hears."""
    from .override import override_broker

    with override_broker() as config:
        yield config


@pytest.fixture
def captured_broadcasts() -> Iterator[CapturedBroadcasts]:
    """`capture_broadcasts` for one test."""
    from .capture import capture_broadcasts

    with capture_broadcasts() as captured:
        yield captured


class _Clients:
    """Connects clients for one coroutine test, and closes them on that test's own loop."""

    def __init__(self) -> None:
        self._stack: contextlib.AsyncExitStack | None = None

    async def __call__(self, app: Any, path: str = "/", **options: Any) -> SocketClient:
        from .client import SocketClient

        if self._stack is None:
            raise RuntimeError(
                "socket_client is for coroutine tests: use sync_socket_client in a plain one"
            )
        return await self._stack.enter_async_context(SocketClient(app, path, **options))

    def around(self, test: Callable[..., Any]) -> Callable[..., Any]:
        """The test, with its clients closed at its end."""

        @functools.wraps(test)
        async def run(*args: Any, **kwargs: Any) -> Any:
            from .database import share_database

            async with share_database(), contextlib.AsyncExitStack() as self._stack:
                return await test(*args, **kwargs)

        return run


@pytest.fixture
def socket_client() -> Callable[..., Any]:
    """`client = await socket_client(app, path, ...)`: a connected `SocketClient`.

    Every client is closed at the end of the test. Coroutines of the test see its database rows.
    """
    return _Clients()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Give a coroutine test with `socket_client` the end that closes its clients."""
    # A fixture cannot: whose loop it runs on, and in which order, depends on the async plugin.
    clients = getattr(item, "funcargs", {}).get("socket_client")
    if isinstance(clients, _Clients) and isinstance(item, pytest.Function):
        test = item.obj
        if inspect.iscoroutinefunction(test):
            item.obj = clients.around(test)


@pytest.fixture
def sync_socket_client() -> Iterator[Callable[..., SyncSocketClient]]:
    """`client = sync_socket_client(app, path, ...)`: a connected `SyncSocketClient`.

    Every client is closed at the end of the test.
    """
    from .sync_client import SyncSocketClient

    with contextlib.ExitStack() as stack:

        def connect(app: Any, path: str = "/", **options: Any) -> SyncSocketClient:
            return stack.enter_context(SyncSocketClient(app, path, **options))

        yield connect


@pytest.fixture
def live_socket_server() -> Iterator[Callable[..., LiveSocketServer]]:
    """`server = live_socket_server(app)`: a running `LiveSocketServer`, stopped after the test."""
    from .live import LiveSocketServer

    with contextlib.ExitStack() as stack:

        def start(app: Any, **options: Any) -> LiveSocketServer:
            return stack.enter_context(LiveSocketServer(app, **options))

        yield start
