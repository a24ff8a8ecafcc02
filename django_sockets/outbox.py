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
        discarded: called with the number of messages that were queued and never sent.

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
        discarded: Callable[[int], None],
    ) -> None:
        self._send = send
        self._missing = missing
        self._gone = gone
        self._limits = limits
        self._discarded = discarded
        self._opened: Lane | None = None
        self.held = False
        self.muted = False

    def lane(self) -> Lane:
        """The queue before `send`; made when it is first needed."""
        if self._opened is None:
            max_items, max_bytes, congestion = self._limits()
            self._opened = Lane(
                self._write,
                self._gone,
                max_items=max_items,
                max_bytes=max_bytes,
                congestion=congestion,
                held=self.held,
                dropped=self._dropped,
                send=self._send,
            )
        return self._opened

    def _dropped(self, events: list[Event]) -> None:
        self._discarded(sum(map(_is_message, events)))

    async def _write(self, event: Event) -> None:
        if self._send is None:
            self._missing()
        elif not self.muted:
            try:
                await self._put_out(event)
            except BaseException:
                self._discarded(_is_message(event))
                raise

    async def _put_out(self, event: Event) -> None:
        send = self._send
        if send is None:
            return
        try:
            await send(event)
        except OSError:
            raise
        except Exception:
            code: int = event.get("code") or 0
            if event["type"] != "websocket.close" or code not in range(1001, 1016):
                raise
            # daphne 4.2 (autobahn) lets an application close with 1000 and 3000 to 4999 only.
            await send({**event, "code": code + 2000})

    def put(self, event: Event, size_bytes: int) -> bool:
        """Queue an event without waiting; False if the client reads too slowly."""
        return self.muted or self.lane().put(event, size_bytes)

    def evict(self) -> Any:
        """Drop and return the oldest event that nobody waits for; None if there is none."""
        return self.lane().evict()

    @property
    def idle(self) -> bool:
        """Nothing is on its way."""
        return self._opened is None or (self._opened.idle and self._opened.empty)

    async def run(self, event: Event) -> None:
        """Queue an event and return once the server has taken it."""
        if not self.muted:
            await self.lane().run(event)

    async def release(self, accept: Event) -> None:
        """Send the accept, and then what was held."""
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


def _is_message(event: Event) -> bool:
    return bool(event["type"] == "websocket.send")
