"""SocketClient: a websocket client for tests, which runs an ASGI application in process.

It calls the application through ASGI, without a server and without TCP. Use a real server to test
what belongs to a server, such as pings, fragments and buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, ClassVar
from urllib.parse import unquote

from ..connection.handshake import ERRORS
from ..connection.limits import check_list
from ..connection.server_frames import EXTENSION
from ..deadlines import with_deadline
from .database import give_orders, share_database
from .prepared_frames import FrameServer

__all__ = ["HandshakeRefused", "SocketClient", "SocketClosed"]

TIMEOUT_SECONDS = 5.0
"""Default bound of each wait for an expected event."""


class HandshakeRefused(AssertionError):
    """The application refused the websocket handshake.

    Attributes:
        status: the HTTP status of the response.
    """

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"the handshake was refused with HTTP {status}")


class SocketClosed(AssertionError):
    """The application closed the socket while the test waited for a message.

    Attributes:
        code: the close code.
    """

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"the application closed the socket with code {code}")


class SocketClient:
    """One websocket connection to an ASGI application; use it with `async with`.

    Args:
        app: an ASGI application such as `MySocket.as_asgi`.
        path: path and query, "/ws/chat/?room=1".
        headers: further request headers; `origin` defaults to the application's own.
        subprotocols: the subprotocols that the client offers.
        scope: further keys of the ASGI scope, such as {"user": user}.
        prepared_frames: offer the extension `websocket.frames` as uvicorn with our protocol class
            does; None for the class attribute, which is False.
        raise_errors: raise the errors of the socket's handlers in the test, see `receive` and
            `close`. With False the test sees only the close code 1011, as a browser does.
            Default: True.

    Attributes:
        subprotocol: the subprotocol that the application accepted, or None.
        close_code: the close code of the application, or None while the socket is open.
        errors: the errors of handlers, `authorize` and authentication, oldest first. Errors that
            the class's own `error` method has handled are not in the list.
        raise_errors: see the argument; may be changed.

    Raises:
        HandshakeRefused: on entering, if the application refuses. If an error of the application
            is the reason, it is the `__cause__`.
    """

    prepared_frames: ClassVar[bool] = False

    def __init__(
        self,
        app: Any,
        path: str = "/",
        *,
        headers: Mapping[str, str] | None = None,
        subprotocols: Iterable[str] = (),
        scope: Mapping[str, Any] | None = None,
        raise_errors: bool = True,
        prepared_frames: bool | None = None,
    ) -> None:
        if isinstance(subprotocols, (str, bytes)):
            check_list("subprotocols", subprotocols)
        self._app = app
        self.errors: list[Exception] = []
        self.raise_errors = raise_errors
        self._raised = 0
        route, _, query = path.partition("?")
        names = {"host": "testserver", "origin": "http://testserver"}
        names.update({name.lower(): value for name, value in (headers or {}).items()})
        self.scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": unquote(route),
            "raw_path": route.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in names.items()],
            "client": ("127.0.0.1", 1),
            "server": ("testserver", 80),
            "subprotocols": list(subprotocols),
            "extensions": {"websocket.http.response": {}},
            ERRORS: self.errors.append,
            **(scope or {}),
        }
        self.subprotocol: str | None = None
        self.close_code: int | None = None
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self._open = False
        if self.prepared_frames if prepared_frames is None else prepared_frames:
            frames = FrameServer(self._from_app.put_nowait, lambda: self._open)
            extensions = {**self.scope["extensions"], EXTENSION: frames.extension(self._put)}
            self.scope["extensions"] = extensions
        self._task: asyncio.Task[None] | None = None
        self._database = contextlib.AsyncExitStack()

    async def __aenter__(self) -> SocketClient:
        await self.connect()
        return self

    async def __aexit__(self, kind: object, exc: BaseException | None, _: object) -> None:
        if exc is not None:
            self.raise_errors = False  # The test fails with its own error.
        await self.close()

    async def connect(self) -> None:
        """Shake hands. Raises HandshakeRefused."""
        await self._database.enter_async_context(share_database())
        try:
            self._task = asyncio.get_running_loop().create_task(self._run())
            await self._to_app.put({"type": "websocket.connect"})
            event = await self._next(TIMEOUT_SECONDS)
        except BaseException:
            with contextlib.suppress(Exception):
                await self.close()
            await self._database.aclose()
            raise
        if event["type"] == "websocket.accept":
            self.subprotocol = event.get("subprotocol")
            return
        status = event["status"] if event["type"] == "websocket.http.response.start" else 403
        cause = self._unraised()
        await self.close()
        raise HandshakeRefused(status) from cause

    async def _run(self) -> None:
        try:
            await self._app(self.scope, self._to_app.get, self._put)
        finally:
            self._open = False

    async def _put(self, event: MutableMapping[str, Any]) -> None:
        if event["type"] in ("websocket.accept", "websocket.close"):
            self._open = event["type"] == "websocket.accept"
        await self._from_app.put(event)

    async def _next(self, timeout_seconds: float) -> MutableMapping[str, Any]:
        """The application's next event. If the application raised an exception, it is raised."""
        give_orders()
        waiting = asyncio.ensure_future(self._from_app.get())
        running = [self._task] if self._task is not None else []
        await asyncio.wait(
            [waiting, *running], timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if not waiting.done() and self._from_app.empty():
            waiting.cancel()
            if self._task is not None and self._task.done():
                self._task.result()
                raise SocketClosed(self.close_code or 1006) from self._unraised()
            text = f"nothing came from the application in {timeout_seconds:g} s"
            raise AssertionError(text) from self._unraised()
        return await waiting

    def _unraised(self) -> Exception | None:
        """The first error that was not raised in the test yet; all errors then count as raised."""
        unraised, self._raised = self.errors[self._raised :], len(self.errors)
        return unraised[0] if unraised and self.raise_errors else None

    async def send_text(self, text: str) -> None:
        """Send a text frame."""
        await self._to_app.put({"type": "websocket.receive", "text": text})

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary frame."""
        await self._to_app.put({"type": "websocket.receive", "bytes": data})

    async def send_json(self, data: Any) -> None:
        """Send data as JSON in a text frame."""
        await self.send_text(json.dumps(data))

    async def receive(self, timeout_seconds: float = TIMEOUT_SECONDS) -> str | bytes:
        """The next frame, text or binary.

        Raises:
            SocketClosed: the application closed the socket.
            Exception: the error of a handler because of which the socket was closed.
            AssertionError: no frame came within `timeout_seconds`.
        """
        try:
            return await self._receive(timeout_seconds)
        except SocketClosed as closed:
            error = self._unraised() or closed.__cause__
            if error is not None:
                raise error from None
            raise

    async def _receive(self, timeout_seconds: float) -> str | bytes:
        event = await self._next(timeout_seconds)
        if event["type"] == "websocket.close":
            self.close_code = event.get("code", 1000)
            raise SocketClosed(self.close_code or 1000)
        text: str | None = event.get("text")
        return text if text is not None else bytes(event["bytes"])

    async def receive_json(self, timeout_seconds: float = TIMEOUT_SECONDS) -> Any:
        """The data in the next frame; see `receive`."""
        return json.loads(await self.receive(timeout_seconds))

    async def receive_close(self, timeout_seconds: float = TIMEOUT_SECONDS) -> int:
        """Wait for the application to close the socket, skipping frames before it.

        The logins of open sockets are checked at once; without a test this happens every
        `session_check_seconds`.

        Returns:
            The close code; 1011 if a handler has raised. The error then counts as expected.
        """
        _check_logins()
        try:
            while True:
                await self._receive(timeout_seconds)
        except SocketClosed as closed:
            self._unraised()
            return closed.code

    async def receive_nothing(self, seconds: float = 0.05) -> bool:
        """Whether no frame arrives for `seconds`. A frame that arrives can still be received."""
        give_orders()
        if not self._from_app.empty():
            return False
        try:
            event = await with_deadline(seconds, self._from_app.get())
        except asyncio.TimeoutError:
            return True
        self._from_app.put_nowait(event)
        return False

    async def close(self, code: int = 1000) -> None:
        """Close the connection, and return when the application has finished with it.

        Raises:
            Exception: an error of a handler, including `disconnect`, that was not raised in the
                test before.
        """
        task = self._task
        if task is None:
            return
        self._task = None
        try:
            await self._leave(task, code)
        finally:
            await self._database.aclose()
        error = self._unraised()
        if error is not None:
            raise error

    async def _leave(self, task: asyncio.Task[None], code: int) -> None:
        if not task.done():
            await self._to_app.put({"type": "websocket.disconnect", "code": code})
            await asyncio.wait([task], timeout=TIMEOUT_SECONDS)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
            raise AssertionError(f"the application did not end within {TIMEOUT_SECONDS:g} s")
        task.result()


def _check_logins() -> None:
    watch = sys.modules.get("django_sockets.middleware.watch")
    if watch is not None:
        watch.check_now()
