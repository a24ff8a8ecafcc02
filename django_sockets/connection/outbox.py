"""The way from a socket to an ASGI `send`: one event at a time, in order, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, TypeAlias

from ..delivery.flow_control import Backlog
from ..delivery.send_queue import SendQueue
from .close_codes import close_code_for_autobahn

__all__ = ["Outbox", "Sender"]

Event: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Event], Awaitable[None]]

CLOSE_SECONDS = 1.0
"""How long a close waits for what is queued before it."""


class Sender(Protocol):
    """The subscriber of the connection, as its outbox knows it.

    It is an object and no set of callables, so that an idle connection is small.
    """

    def no_send(self) -> None:
        """Warn that there is no `send` for an event."""

    def client_gone(self, exc: Exception) -> None:
        """End: `send` raised this, so the client has left."""

    def new_backlog(self) -> Backlog:
        """Make the queue for messages that wait for a client that reads slowly."""

    def discarded(self, count: int) -> None:
        """Count messages that were queued and never sent."""


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

    # The methods of a send queue

    async def handle(self, event: Event) -> None:
        if self._send is None:
            self.owner.no_send()
        elif not self.muted:
            try:
                await self._send(event)
            except BaseException as exc:
                self.owner.discarded(_is_message(event))
                again = _close_for_autobahn(event, exc)
                if again is None:
                    raise
                await self._send(again)

    def failed(self, exc: Exception) -> None:
        self.owner.client_gone(exc)

    def dropped(self, items: list[Event]) -> None:
        self.owner.discarded(sum(map(_is_message, items)))

    def new_backlog(self) -> Backlog:
        return self.owner.new_backlog()

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
    """The close to send after autobahn has refused one; None if that is not what happened."""
    if event["type"] != "websocket.close":
        return None
    if isinstance(refusal, OSError) or not isinstance(refusal, Exception):
        return None
    code = close_code_for_autobahn(event.get("code") or 0)
    return None if code is None else {**event, "code": code}


def _is_message(event: Event) -> bool:
    return bool(event["type"] == "websocket.send")
