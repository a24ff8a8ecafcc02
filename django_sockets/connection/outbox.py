"""The way from a socket to an ASGI `send`: one event at a time, in order, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, TypeAlias

from ..delivery.flow_control import Backlog
from ..delivery.send_queue import SendQueue

__all__ = ["Outbox", "Sender"]

Event: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Event], Awaitable[None]]

CLOSE_SECONDS = 1.0
"""How long a close waits for what is queued before it."""


class Sender(Protocol):
    """The socket, as its outbox knows it. An object and no callables: an idle socket is small."""

    def _no_send(self) -> None:
        """Something is to be sent and there is no `send`."""

    def _client_gone(self, exc: Exception) -> None:
        """`send` raised this: the client has left."""

    def _new_backlog(self) -> Backlog:
        """What may wait for a client that reads slowly."""

    def _discarded(self, count: int) -> None:
        """So many messages were queued and never sent."""


class Outbox(SendQueue):
    """Events on their way to one client, on one event loop.

    Args:
        send: the ASGI callable, or None.

    Attributes:
        muted: nothing goes out any more: the interpreter is exiting.
    """

    __slots__ = ("_send", "muted")

    owner: Sender

    def __init__(self, owner: Sender, send: Send | None) -> None:
        super().__init__()
        self.owner = owner
        self._send = send
        if send is not None:
            self.send = send
        self.muted = False

    # What it is as a send queue

    async def handle(self, event: Event) -> None:
        if self._send is None:
            self.owner._no_send()
        elif not self.muted:
            try:
                await self._send(event)
            except BaseException as exc:
                self.owner._discarded(_is_message(event))
                again = _close_for_autobahn(event, exc)
                if again is None:
                    raise
                await self._send(again)

    def failed(self, exc: Exception) -> None:
        self.owner._client_gone(exc)

    def dropped(self, items: list[Event]) -> None:
        self.owner._discarded(sum(map(_is_message, items)))

    def new_backlog(self) -> Backlog:
        return self.owner._new_backlog()

    # What it is for a socket

    def put(self, event: Event, size_bytes: int) -> bool:
        """Send an event without waiting; False if the client reads too slowly."""
        return self.muted or super().put(event, size_bytes)

    async def run(self, event: Event) -> None:
        """Send an event behind the others; returns once the server has taken it."""
        if not self.muted:
            await super().run(event)

    async def accept(self, event: Event) -> None:
        """Send the accept, and then what was held: until then nothing goes out."""
        if self._send is not None and not self.muted:
            await self._send(event)
        self.release()

    async def close(self, code: int) -> None:
        """Send a close frame behind what is queued, or soon, without it."""
        if self.muted or self.held or self._send is None:
            return
        self.seal()  # Nothing may overtake the close frame, or follow it.
        if self.full:
            self.forget()  # The client does not read: this would only delay the end.
        closing = asyncio.ensure_future(self.run({"type": "websocket.close", "code": code}))
        await asyncio.wait([closing], timeout=CLOSE_SECONDS)

    def mute(self) -> None:
        """The interpreter is exiting: nothing goes out any more."""
        self.muted = True
        self.seal()
        self.forget()


def _close_for_autobahn(event: Event, refusal: BaseException) -> Event | None:
    """daphne 4.2 (autobahn) lets an application close with 1000 and 3000 to 4999 only."""
    code: int = event.get("code") or 0
    if event["type"] != "websocket.close" or code not in range(1001, 1016):
        return None
    if isinstance(refusal, OSError) or not isinstance(refusal, Exception):
        return None
    return {**event, "code": code + 2000}


def _is_message(event: Event) -> bool:
    return bool(event["type"] == "websocket.send")
