"""The bounded queue from a socket to its server. It keeps the order of messages.

A message goes to a server that takes prepared frames as a frame, with one call that does not wait.
For other servers, and for the accept and the close, it is an ASGI event for `send`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..delivery.client_payload import CLIENT_PROTOCOL
from ..delivery.flow_control import Backlog
from ..delivery.message import Delivery
from ..delivery.run import RUN_BYTES, Run, delivery_frame
from ..delivery.send_queue import SendQueue
from .close_codes import close_code_for_autobahn
from .server_frames import ServerFrames

__all__ = ["Frames", "Item", "Outbox", "Sender"]

Event: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Event], Awaitable[None]]


class Frames(NamedTuple):
    """The frames of 1..n messages for one connection."""

    data: bytes
    messages: int


Item: TypeAlias = Event | Frames | Delivery | Run
"""An ASGI event, or messages for a server that takes frames."""

CLOSE_SECONDS = 1.0
"""How long a close waits for what is queued before it."""


class Sender(Protocol):
    """The subscriber of the connection, as its outbox knows it.

    One object instead of several callables keeps an idle connection small.
    """

    @property
    def takes_whole_runs(self) -> bool:
        """The fan-out may queue messages that have to wait, without `on_delivery`."""

    def no_send(self) -> None:
        """Warn that there is no `send` for an event."""

    def client_gone(self, exc: Exception) -> None:
        """End: `send` raised this, so the client has left."""

    def new_backlog(self) -> Backlog:
        """Make the queue for messages that wait for a client that reads slowly."""

    def discarded(self, count: int) -> None:
        """Count messages that were queued and never sent."""


class Outbox(SendQueue):
    """Events and frames on their way to one client, on one event loop.

    Args:
        send: the ASGI callable, or None.

    Attributes:
        muted: nothing is sent any more, because the interpreter is exiting.
    """

    __slots__ = ("_drain", "_send", "muted")

    owner: Sender

    def __init__(self, owner: Sender, send: Send | None) -> None:
        super().__init__()
        self.owner = owner
        self._send = send
        self._drain: Callable[[], Awaitable[None]] | None = None
        if send is not None:
            self.send = send
        self.muted = False

    def use_frames(self, frames: ServerFrames | None, compress: bool) -> None:
        """Send messages as frames from now on, if the server takes them."""
        if frames is not None:
            self.write, self._drain, window_bits = frames
            self.window_bits = window_bits if compress else 0

    # The methods of a send queue

    async def handle(self, item: Item) -> None:
        if self._send is None:
            self.owner.no_send()
        elif self.muted:
            pass
        elif isinstance(item, _MESSAGES):
            await self._write_frames(item)
        else:
            await self._send_event(self._send, item)

    async def _send_event(self, send: Send, event: Event) -> None:
        try:
            await send(event)
        except BaseException as exc:
            self.owner.discarded(_messages(event))
            again = _close_for_autobahn(event, exc)
            if again is None:
                raise
            await send(again)

    async def _write_frames(self, item: Frames | Delivery | Run) -> None:
        write, drain = self.write, self._drain
        if write is None or drain is None:
            raise TypeError("frames are only queued for a server that takes them")
        data = self._data(item)
        try:
            while not write(data):
                await drain()
                if write(data):
                    break
                await asyncio.sleep(0)  # A `drain` that returns too early must not stop the loop.
        except BaseException:
            self.owner.discarded(_messages(item))
            raise

    def _data(self, item: Frames | Delivery | Run) -> bytes:
        if isinstance(item, Frames):
            return item.data
        if isinstance(item, Delivery):
            return delivery_frame(item, self.window_bits)
        return item.frames(self.window_bits)

    def take(self, backlog: Backlog) -> tuple[Item, asyncio.Future[None] | None]:
        """The next item; messages that wait behind it are joined with it, up to 32 KiB."""
        item, done = super().take(backlog)
        if self.write is None or done is not None or not backlog or not isinstance(item, _MESSAGES):
            return item, done
        parts, size_bytes, messages = [self._data(item)], 0, _messages(item)
        while backlog:
            size_bytes += len(parts[-1])
            following, awaited = backlog.peek()
            if (
                size_bytes >= RUN_BYTES
                or awaited is not None
                or not isinstance(following, _MESSAGES)
            ):
                break
            backlog.take()
            parts.append(self._data(following))
            messages += _messages(following)
        return Frames(b"".join(parts), messages), None

    def split(self, item: Item) -> tuple[Item, int, Item | None]:
        if isinstance(item, Run):
            first, rest = item.split()
            return first, len(first.payload), rest
        return item, 0, None

    def put_whole(self, item: Item, size_bytes: int, items: int) -> bool:
        return self.owner.takes_whole_runs and super().put_whole(item, size_bytes, items)

    def failed(self, exc: Exception) -> None:
        self.owner.client_gone(exc)

    def dropped(self, items: list[Item]) -> None:
        self.owner.discarded(sum(map(_messages, items)))

    def new_backlog(self) -> Backlog:
        return self.owner.new_backlog()

    # Methods for the socket

    def message(self, payload: bytes, is_text: bool, compress: bool = True) -> Item:
        """A message of the socket's own, as an item for this server."""
        if self.write is not None:
            delivery = Delivery("", payload, is_text, None, compress)
            return Frames(delivery_frame(delivery, self.window_bits % CLIENT_PROTOCOL), 1)
        if is_text:
            return {"type": "websocket.send", "text": payload.decode()}
        return {"type": "websocket.send", "bytes": payload}

    def put(self, item: Item, size_bytes: int) -> bool:
        """Send an item without waiting; False if the client reads too slowly."""
        return self.muted or super().put(item, size_bytes)

    async def run(self, item: Item) -> None:
        """Send an item after the queued ones. Returns when the server has accepted it."""
        if self.muted:
            return
        if isinstance(item, Frames) and self.idle and not (self.held or self._ended):
            # An error is raised again below, where it ends the queue.
            with contextlib.suppress(Exception):
                if self.write is not None and self.write(item.data):
                    return
        await super().run(item)

    def control(self, item: Item) -> None:
        """Queue an item of the protocol, also in a full queue. The number of them is bounded."""
        if self.muted or self._ended:
            return
        if self.idle and not self.held:
            self._begin(self._one(item))
        else:
            self._queue((item, None), 0, force=True)

    async def accept(self, event: Event) -> None:
        """Send the accept, and then the held items. Nothing is sent before the accept."""
        if self._send is not None and not self.muted:
            await self._send(event)
        self.release()

    async def close(self, code: int, last: Item | None = None) -> None:
        """Send a close frame after the queued items, or drop them if the outbox is full.

        Args:
            last: a message to send right before the close frame.
        """
        if self.muted or self.held or self._send is None:
            return
        self.seal()  # Nothing may overtake the close frame, or follow it.
        if self.full:
            self.forget()  # The client does not read, so these items would only delay the close.
        if last is not None:
            self.control(last)
        closing = asyncio.ensure_future(self.run({"type": "websocket.close", "code": code}))
        await asyncio.wait([closing], timeout=CLOSE_SECONDS)

    def mute(self) -> None:
        """Send nothing any more, because the interpreter is exiting."""
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


_MESSAGES = (Frames, Delivery, Run)


def _messages(item: Item) -> int:
    """The number of messages in an item."""
    if isinstance(item, Run):
        return len(item.messages)
    if isinstance(item, Frames):
        return item.messages
    return 1 if isinstance(item, Delivery) else int(item["type"] == "websocket.send")
