"""What each peer's own publisher puts on the wire, so that one program can publish for all."""

from __future__ import annotations

from collections.abc import Callable

import hiredis
import msgpack  # type: ignore[import-untyped]

from django_sockets.backends.names import server_name
from django_sockets.envelope import Publisher

Message = Callable[[str, str], bytes]
"""Makes the command that publishes a JSON text to a room."""


def _publish(channel: bytes, payload: bytes) -> bytes:
    command: tuple[bytes, ...] = (b"PUBLISH", channel, payload)
    return hiredis.pack_command(command)  # type: ignore[arg-type]


def limit() -> Message:
    return lambda room, text: _publish(room.encode(), text.encode())


def ours() -> Message:
    publisher = Publisher()

    def message(room: str, text: str) -> bytes:
        (header,) = publisher.headers([room], is_text=True)
        return _publish(server_name(b"django_sockets", room), header + text.encode())

    return message


def published() -> Message:
    """django-sockets 3.1.0: `pubsub.<channel>`, msgpack of the data."""
    import json

    return lambda room, text: _publish(f"pubsub.{room}".encode(), msgpack.packb(json.loads(text)))


def channels_pubsub() -> Message:
    """channels_redis 4.3, pubsub layer: msgpack of the event."""

    def message(room: str, text: str) -> bytes:
        event = msgpack.packb({"type": "chat.message", "text": text})
        return _publish(f"asgi__group__{room}".encode(), event)

    return message
