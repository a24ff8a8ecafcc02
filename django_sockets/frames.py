"""The frames of one client: read a little ahead, handled one at a time and in order.

Reading goes on while a handler is busy, so that a client that leaves is noticed at once. A client
that sends faster than its handlers work has to wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Protocol, TypeAlias

__all__ = ["Frames", "Listener"]

logger = logging.getLogger("django_sockets")

Event: TypeAlias = MutableMapping[str, Any]

READ_AHEAD = 16
"""Frames read while a handler is busy."""
GOING_AWAY, NO_CODE, INTERNAL_ERROR = 1001, 1005, 1011
"""Close codes of RFC 6455, section 7.4.1: the server has cancelled our task; the client gave none;
the server's `receive` has failed."""


_NOTHING: deque[Event] = deque(maxlen=0)
"""In place of a queue where no frame ever waited."""


class Listener(Protocol):
    """The socket, as its frames know it. An object and no callables: an idle socket is small.

    Attributes:
        _home: the event loop it lives on.
    """

    _home: asyncio.AbstractEventLoop

    def _begin(self) -> None:
        """Nothing was read yet."""

    def _handle(self, event: Event) -> Coroutine[Any, Any, None]:
        """Handle an event, each but the last."""

    async def _failed(self, exc: Exception) -> None:
        """Handling one has raised this; must not raise itself."""

    async def _over(self, code: int) -> None:
        """Nothing is read any more."""


class Frames:
    """The way from an ASGI `receive` to a handler, on one event loop.

    Attributes:
        heard_at: loop time at which the client was last heard.
        code: the close code, once the connection has ended.
    """

    __slots__ = (
        "_cancelled",
        "_handler",
        "_owner",
        "_reader",
        "_stopped",
        "_taken",
        "_waiting",
        "code",
        "heard_at",
    )

    def __init__(self, owner: Listener) -> None:
        self._owner = owner
        self._waiting = _NOTHING
        self._taken: asyncio.Future[None] | None = None
        self._handler: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[Any] | None = None
        self._cancelled = False
        self._stopped = False
        self.heard_at = 0.0
        self.code: int | None = None

    def push(self, event: Event) -> None:
        """Have an event handled after those that wait."""
        if self._handler is None:
            self._handler = self._owner._home.create_task(self._work(event))
            return
        if self._waiting is _NOTHING:
            self._waiting = deque()
        self._waiting.append(event)

    async def serve(self, receive: Callable[[], Awaitable[Event]] | None) -> None:
        """Read events until the client leaves, or until `end`; with None it hears nothing.

        It reads in the task of its caller, the server's: one of its own would be a twentieth of a
        handshake.
        """
        loop = self._owner._home
        receive = receive or loop.create_future
        reader = asyncio.current_task(loop)
        earlier = _cancelling(reader)
        try:
            self.heard_at = loop.time()
            self._owner._begin()
            self._reader = reader
            while self.code is None:
                event = await receive()
                self.heard_at = loop.time()
                if event["type"] == "websocket.disconnect":
                    self.end(event.get("code") or NO_CODE)
                    break
                self.push(event)
                while len(self._waiting) >= READ_AHEAD:
                    self._taken = loop.create_future()
                    await self._taken
        except asyncio.CancelledError:
            if not self._cancelled or _uncancel(reader) > earlier:
                raise  # Somebody else wants the task to end.
        except Exception:
            if self._reader is None:
                raise  # It has not begun.
            logger.exception("the server's receive failed")
            self.end(INTERNAL_ERROR)
        finally:
            self._reader = None
            if self.code is None:
                self.code = GOING_AWAY
            await self._owner._over(self.code)

    def end(self, code: int) -> None:
        """The connection has ended: read nothing more. The first code counts."""
        if self.code is not None:
            return
        self.code = code
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._cancelled = True
            self._reader.cancel()

    async def _work(self, event: Event | None) -> None:
        try:
            while event is not None and not self._stopped:
                try:
                    await self._owner._handle(event)
                except Exception as exc:
                    await self._owner._failed(exc)
                event = self._next()
        finally:
            self._handler = None

    def _next(self) -> Event | None:
        if not self._waiting:
            return None
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)
        return self._waiting.popleft()

    def stop(self) -> None:
        """Handle nothing more after the event in hand."""
        self._stopped = True

    @property
    def busy(self) -> bool:
        """An event is at hand or waits."""
        return self._handler is not None

    async def settled(self, timeout_seconds: float) -> None:
        """Handle nothing after the event at hand, and wait for that, at most so long."""
        self.stop()
        if self._handler is not None:
            await asyncio.wait([self._handler], timeout=timeout_seconds)

    async def finish(self, timeout_seconds: float | None) -> None:
        """Wait until what was read is handled; after the timeout, give up on it."""
        handler = self._handler
        if handler is not None and handler is not asyncio.current_task():
            await asyncio.wait([handler], timeout=timeout_seconds)
            handler.cancel()


_cancelling: Any = getattr(asyncio.Task, "cancelling", lambda task: 0)
_uncancel: Any = getattr(asyncio.Task, "uncancel", lambda task: 0)
"""How many want a task to end, and that without one; Python 3.10 does not count them."""
