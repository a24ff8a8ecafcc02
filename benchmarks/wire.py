"""The messages of each peer's own publisher, so that one program can publish for all peers."""

from __future__ import annotations

import json
from collections.abc import Callable

import hiredis
import msgpack  # type: ignore[import-untyped]

from django_sockets.backends.client.commands import server_name
from django_sockets.delivery.envelope import Publisher, unpack
from django_sockets.history import Position, position_field, tag_of, with_field
from django_sockets.integration.channel_layer.names import GroupIds

Message = Callable[[str, str], tuple[bytes, bytes]]
"""Returns channel and payload for a room and a JSON text."""


def command(verb: bytes, channel: bytes, payload: bytes) -> bytes:
    """Encode a command for the connection."""
    words: tuple[bytes, ...] = (verb, channel, payload)
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]
    return packed


def limit() -> Message:
    """The text alone, as with ws and ioredis."""
    return lambda room, text: (room.encode(), text.encode())


node = limit


def ours(origin: bytes | None = None) -> Message:
    """The prefix and the envelope of this package.

    Args:
        origin: the id of a socket that must not receive the messages.
    """
    publisher = Publisher()

    def message(room: str, text: str) -> tuple[bytes, bytes]:
        (header,) = publisher.headers([room], is_text=True, origin=origin)
        return server_name(b"django_sockets", room), header + text.encode()

    return message


def ours_kept(newest: Position) -> Message:
    """`ours` for messages that the server would have kept behind a position."""
    publisher = Publisher()
    offset, tag = newest.offset, newest.tag

    def message(room: str, text: str) -> tuple[bytes, bytes]:
        nonlocal offset, tag
        (header,) = publisher.headers([room], is_text=True)
        offset += 1
        place = position_field(newest.epoch, offset, tag)
        tag = tag_of(header)
        return server_name(b"django_sockets", room), with_field(header) + place + text.encode()

    return message


def origin_of(payload: bytes) -> bytes | None:
    """The id of the socket that must not receive a message of `ours`."""
    *_, origin, _ = unpack(payload)
    return origin


def published() -> Message:
    """django-sockets 3.1.0: `pubsub.<channel>`, msgpack of the data."""
    return lambda room, text: (f"pubsub.{room}".encode(), msgpack.packb(json.loads(text)))


def channels_pubsub() -> Message:
    """channels_redis 4.3, pubsub layer: msgpack of the event."""

    def message(room: str, text: str) -> tuple[bytes, bytes]:
        event = msgpack.packb({"type": "chat.message", "text": text})
        return f"asgi__group__{room}".encode(), event

    return message


def channels_ours() -> Message:
    """Our channel layer: the envelope, the identifier of a group message, msgpack of the event."""
    publisher, ids = Publisher(), GroupIds()

    def message(room: str, text: str) -> tuple[bytes, bytes]:
        channel = f"asgi:g:{room}"
        (header,) = publisher.headers([channel], is_text=False)
        event = msgpack.packb({"type": "chat.message", "text": text})
        return server_name(b"django_sockets", channel), header + ids.pack(event)

    return message
