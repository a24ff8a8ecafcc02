"""One received broadcast and its decoded forms.

The data is decoded only for a class that asks for it, once for each process and message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from ..codec import decode_json, send_event
from ..history import Position
from .client_payload import channel_payload

__all__ = ["Delivery", "Place"]

Place: TypeAlias = tuple[bytes, bytes, bytes, bytes]
"""The place behind a kept message: epoch, offset in decimal digits, tag and history id, as in
`history.Position`. Converting the digits for each message would take longer than unpacking it."""


class Delivery(msgspec.Struct, gc=False, eq=False):
    """One broadcast as received by this process, shared by all its local subscribers.

    It is a `Struct` because creating one takes a third of the time of a class with `__init__`.

    Attributes:
        channel: the channel of the broadcast.
        payload: the published bytes.
        is_text: True for JSON text in UTF-8, False for a binary frame.
        origin: id of the socket that must not receive the broadcast, or None.
        compress: False if the publisher asked for frames that are not compressed.
        place: the place behind the message in the history of its channel, or None.
        traceparent: the context of its span, while there is a tracer; None if it is not traced.
        made: the result of `event()` once it was called. The fan-out reads it directly, to save a
            call for each delivery.
    """

    channel: str
    payload: bytes
    is_text: bool
    origin: bytes | None = None
    compress: bool = True
    place: Place | None = None
    made: dict[str, Any] | None = None
    _data: Any = msgspec.UNSET
    _foreign: dict[object, Any] | None = None
    traceparent: str | None = None

    @classmethod
    def of_frame(cls, channel: str, frame: bytes) -> Delivery:
        """A frame for clients of the protocol that is sent as it is, as if it was a broadcast.

        Only such clients may get it.
        """
        return cls(channel=channel, payload=frame, is_text=True, _foreign={_PAYLOAD: frame})

    def event(self) -> dict[str, Any]:
        """The ASGI `websocket.send` event. All sockets share the object: do not change it."""
        if self.made is None:
            if self.is_text:
                self.made = {"type": "websocket.send", "text": self.payload.decode()}
            else:
                self.made = {"type": "websocket.send", "bytes": self.payload}
        return self.made

    @property
    def position(self) -> str | None:
        """The place behind the message as text for `since`; None if it was not kept."""
        if self.place is None:
            return None
        epoch, digits, tag, history_id = self.place
        return str(Position(epoch, int(digits), tag, history_id))

    def data(self) -> Any:
        """The decoded data. All sockets of the process share the object: do not change it."""
        if self._data is msgspec.UNSET:
            self._data = decode_json(self.payload) if self.is_text else self.payload
        return self._data

    def event_by(self, encoder: Callable[[Any], Any], is_bytes: bool) -> dict[str, Any]:
        """The event as encoded by a class's own encoder. It is made once for each encoder."""
        if self._foreign is None:
            self._foreign = {}
        key = (encoder, is_bytes)
        event: dict[str, Any] | None = self._foreign.get(key)
        if event is None:
            event = self._foreign[key] = send_event(encoder(self.data()), is_bytes)
        return event

    def client_payload(self) -> bytes:
        """The payload for clients of the protocol. It is made once."""
        if self._foreign is None:
            self._foreign = {}
        payload: bytes | None = self._foreign.get(_PAYLOAD)
        if payload is None:
            payload = channel_payload(self.channel, self.payload, self.is_text, self.position)
            self._foreign[_PAYLOAD] = payload
        return payload

    def client_event(self) -> dict[str, Any]:
        """The ASGI event for clients of the protocol. It is made once, and shared as `event()`."""
        payload = self.client_payload()
        foreign: dict[object, Any] = self._foreign or {}
        event: dict[str, Any] | None = foreign.get(_EVENT)
        if event is None:
            event = foreign[_EVENT] = send_event(payload.decode() if self.is_text else payload)
        return event


_PAYLOAD, _EVENT = "payload", "event"
"""Keys for the forms of a message that the clients of the protocol share."""
