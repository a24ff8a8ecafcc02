"""SyncSocketClient: a SocketClient for `def` tests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from ..runtime import close_shared_hubs
from .client import TIMEOUT_SECONDS, SocketClient
from .database import share_database_here

__all__ = ["SyncSocketClient"]

T = TypeVar("T")


class _TestLoop:
    """One event loop on a thread, shared by all open clients."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def acquire(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(
                    target=self._run, args=[loop], name="django_sockets test loop"
                )
                try:
                    thread.start()
                except BaseException:
                    loop.close()
                    raise
                self._loop, self._thread = loop, thread
            self._users += 1
            return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            loop.run_until_complete(_end())
        finally:
            loop.close()

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            loop, thread = self._loop, self._thread
            if self._users or loop is None or thread is None:
                return
            self._loop = None
            loop.call_soon_threadsafe(loop.stop)
            thread.join()


async def _end() -> None:
    await close_shared_hubs()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


_test_loop = _TestLoop()


class SyncSocketClient:
    """One websocket connection to an ASGI application, for a `def` test; use it with `with`.

        with SyncSocketClient(Chat.as_asgi) as client:
            client.send_json("hello")
            assert client.receive_json() == "hello"

    The application runs on an event loop in another thread while clients are open; the methods
    wait for it. Arguments, attributes and errors are those of `SocketClient`.
    """

    def __init__(
        self,
        app: Any,
        path: str = "/",
        *,
        headers: Mapping[str, str] | None = None,
        subprotocols: Iterable[str] = (),
        scope: Mapping[str, Any] | None = None,
        raise_errors: bool = True,
    ) -> None:
        self._client = SocketClient(
            app,
            path,
            headers=headers,
            subprotocols=subprotocols,
            scope=scope,
            raise_errors=raise_errors,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stack = contextlib.ExitStack()

    @property
    def scope(self) -> dict[str, Any]:
        """The ASGI scope."""
        return self._client.scope

    @property
    def subprotocol(self) -> str | None:
        """See `SocketClient`."""
        return self._client.subprotocol

    @property
    def close_code(self) -> int | None:
        """See `SocketClient`."""
        return self._client.close_code

    @property
    def errors(self) -> list[Exception]:
        """See `SocketClient`."""
        return self._client.errors

    def __enter__(self) -> SyncSocketClient:
        self.connect()
        return self

    def __exit__(self, kind: object, exc: BaseException | None, _: object) -> None:
        if exc is not None:
            self._client.raise_errors = False  # The test fails with its own error.
        self.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise RuntimeError("the client is not connected")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def connect(self) -> None:
        """Shake hands. Raises HandshakeRefused."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(share_database_here())
            self._loop = _test_loop.acquire()
            stack.callback(_test_loop.release)
            try:
                self._do(self._client.connect())
            except BaseException:
                self._loop = None
                raise
            self._stack = stack.pop_all()

    def send_text(self, text: str) -> None:
        """Send a text frame."""
        self._do(self._client.send_text(text))

    def send_bytes(self, data: bytes) -> None:
        """Send a binary frame."""
        self._do(self._client.send_bytes(data))

    def send_json(self, data: Any) -> None:
        """Send data as JSON in a text frame."""
        self._do(self._client.send_json(data))

    def receive(self, timeout_seconds: float = TIMEOUT_SECONDS) -> str | bytes:
        """The next frame; see `SocketClient.receive`."""
        return self._do(self._client.receive(timeout_seconds))

    def receive_json(self, timeout_seconds: float = TIMEOUT_SECONDS) -> Any:
        """The data in the next frame; see `SocketClient.receive`."""
        return self._do(self._client.receive_json(timeout_seconds))

    def receive_close(self, timeout_seconds: float = TIMEOUT_SECONDS) -> int:
        """The code with which the application closes the socket."""
        return self._do(self._client.receive_close(timeout_seconds))

    def receive_nothing(self, seconds: float = 0.05) -> bool:
        """Whether no frame arrives for `seconds`."""
        return self._do(self._client.receive_nothing(seconds))

    def close(self, code: int = 1000) -> None:
        """Close the connection, and return when the application has finished with it."""
        if self._loop is None:
            return
        try:
            self._do(self._client.close(code))
        finally:
            self._loop = None
            self._stack.close()
