"""The frames of one client: read a little ahead, handled one at a time and in order.

Reading goes on while a handler is busy, so that a client that leaves is noticed at once. A client
that sends faster than its handlers work has to wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, TypeAlias

__all__ = ["Frames", "Listener"]

logger = logging.getLogger("django_sockets")

Event: TypeAlias = MutableMapping[str, Any]

READ_AHEAD = 16
"""Frames read while a handler is busy."""
NO_CODE, INTERNAL_ERROR = 1005, 1011
"""Close codes: the client gave none; the server's `receive` failed (RFC 6455, section 7.4.1)."""


_NOTHING: deque[Event] = deque(maxlen=0)
"""In place of a queue where no frame ever waited."""


class Listener(Protocol):
    """The socket, as its frames know it. An object and no callables: an idle socket is small."""

    async def _take_frame(self, event: Event) -> None:
        """Handle an event, each but the last; must not raise."""

    def _end(self, code: int) -> None:
        """The client has gone, with this close code."""


class Frames:
    """The way from an ASGI `receive` to a handler, on one event loop.

    Attributes:
        heard_at: loop time at which the client was last heard.
    """

    def __init__(self, owner: Listener) -> None:
        self._owner = owner
        self._waiting = _NOTHING
        self._taken: asyncio.Future[None] | None = None
        self._handler: asyncio.Task[None] | None = None
        self._stopped = False
        self.heard_at = 0.0

    def push(self, event: Event) -> None:
        """Have an event handled after those that wait."""
        if self._handler is None:
            self._handler = asyncio.get_running_loop().create_task(self._work(event))
            return
        if self._waiting is _NOTHING:
            self._waiting = deque()
        self._waiting.append(event)

    async def read(self, receive: Callable[[], Awaitable[Event]]) -> None:
        """Read events until the client leaves."""
        try:
            while True:
                event = await receive()
                self.heard_at = asyncio.get_running_loop().time()
                if event["type"] == "websocket.disconnect":
                    self._owner._end(event.get("code") or NO_CODE)
                    return
                self.push(event)
                while len(self._waiting) >= READ_AHEAD:
                    self._taken = asyncio.get_running_loop().create_future()
                    await self._taken
        except Exception:
            logger.exception("the server's receive failed")
            self._owner._end(INTERNAL_ERROR)

    async def _work(self, event: Event | None) -> None:
        try:
            while event is not None and not self._stopped:
                await self._owner._take_frame(event)
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
