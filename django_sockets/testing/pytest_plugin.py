"""Fixtures for pytest, which loads them through the entry point `django_sockets`.

Every pytest run with this package installed loads this module. Therefore it imports the rest only
when a fixture is used, needs no other plugin, has no options, and does not change tests that do not
use its fixtures. Coroutine tests may run under pytest-asyncio, in either mode, or under anyio.
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
    """`override_broker` for one test: an in-memory broker that no other test uses."""
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
    """Connects clients for one coroutine test, and closes them on the loop of that test."""

    def __init__(self) -> None:
        self._stack: contextlib.AsyncExitStack | None = None

    async def __call__(self, app: Any, path: str = "/", **options: Any) -> SocketClient:
        from .client import SocketClient

        if self._stack is None:
            raise RuntimeError(
                "socket_client is for coroutine tests: use sync_socket_client in a def test"
            )
        return await self._stack.enter_async_context(SocketClient(app, path, **options))

    def around(self, test: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a test so that its clients are closed at its end."""

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
    """Wrap a coroutine test that uses `socket_client`, so that its clients are closed."""
    # A fixture cannot do this: its loop and its order depend on the async plugin.
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
