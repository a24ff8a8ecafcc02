"""The way from a socket to an ASGI `send`: one event at a time, in order, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from .lane import Lane
from .mailbox import Congestion

__all__ = ["Outbox"]

Event: TypeAlias = MutableMapping[str, Any]

CLOSE_SECONDS = 1.0
"""How long a close waits for what is queued before it."""


class Outbox:
    """Events on their way to one client, on one event loop.

    Args:
        send: the ASGI callable, or None.
        missing: called when something is to be sent and there is no `send`.
        gone: called with what `send` raised: the client has left.
        limits: asked once for the events and bytes that may wait, and for the hub's congestion.

    Attributes:
        held: nothing goes out yet: the handshake is not accepted.
        muted: nothing goes out any more: the interpreter is exiting.
    """

    def __init__(
        self,
        send: Callable[[Event], Awaitable[None]] | None,
        missing: Callable[[], None],
        gone: Callable[[Exception], None],
        limits: Callable[[], tuple[int, int, Congestion]],
    ) -> None:
        self._send = send
        self._missing = missing
        self._gone = gone
        self._limits = limits
        self._opened: Lane | None = None
        self.held = False
        self.muted = False

    def lane(self) -> Lane:
        """The queue before `send`; made when it is first needed."""
        if self._opened is None:
            max_items, max_bytes, congestion = self._limits()
            self._opened = Lane(
                self._write if self._send is None else self._send,
                self._gone,
                max_items=max_items,
                max_bytes=max_bytes,
                congestion=congestion,
                held=self.held,
            )
        return self._opened

    async def _write(self, event: Event) -> None:
        if self._send is None:
            self._missing()
        else:
            await self._send(event)

    def put(self, event: Event, size_bytes: int) -> bool:
        """Queue an event without waiting; False if the client reads too slowly."""
        return self.muted or self.lane().put(event, size_bytes)

    async def run(self, event: Event) -> None:
        """Queue an event and return once the server has taken it."""
        if not self.muted:
            await self.lane().run(event)

    async def release(self, accept: Event) -> None:
        """Send the accept, and then what was held."""
        if not self.muted:
            await self._write(accept)
        self.held = False
        if self._opened is not None:
            self._opened.release()

    async def close(self, code: int) -> None:
        """Send a close frame behind what is queued, or soon, without it."""
        if self.muted or self.held or self._send is None:
            return
        lane = self.lane()
        lane.seal()  # Nothing may overtake the close frame, or follow it.
        if lane.full:
            lane.forget()  # The client does not read: this would only delay the end.
        closing = asyncio.ensure_future(lane.run({"type": "websocket.close", "code": code}))
        await asyncio.wait([closing], timeout=CLOSE_SECONDS)

    def mute(self) -> None:
        """The interpreter is exiting: nothing goes out any more."""
        self.muted = True
        if self._opened is not None:
            self._opened.seal()
            self._opened.forget()

    def end(self) -> None:
        """Drop what is queued; the connection has ended."""
        if self._opened is not None:
            self._opened.close()
