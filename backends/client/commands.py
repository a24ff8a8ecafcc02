"""The server-side names of channels, their cluster slots, and the commands of pub/sub."""

from __future__ import annotations

import binascii
from typing import NamedTuple

from ..watches import channel_of, is_watch

__all__ = [
    "PLAIN",
    "SHARDED",
    "SLOTS",
    "PubSubCommands",
    "leases_key",
    "probe_name",
    "server_name",
    "slot_of",
]

SLOTS = 16384


class PubSubCommands(NamedTuple):
    """The commands of plain or sharded pub/sub, and the types of the pushes in reply.

    Attributes:
        by_slot: whether all channels of one command must be in the same slot.
    """

    publish: bytes
    subscribe: bytes
    unsubscribe: bytes
    message: bytes
    subscribed: bytes
    unsubscribed: bytes
    by_slot: bool


PLAIN = PubSubCommands(
    b"PUBLISH", b"SUBSCRIBE", b"UNSUBSCRIBE", b"message", b"subscribe", b"unsubscribe", False
)
SHARDED = PubSubCommands(
    b"SPUBLISH", b"SSUBSCRIBE", b"SUNSUBSCRIBE", b"smessage", b"ssubscribe", b"sunsubscribe", True
)
"""Since Redis 7.0: a message stays on the nodes of its slot."""


def server_name(prefix: bytes, channel: str) -> bytes:
    """`<prefix>:{<channel>}`. The hash tag lets other keys of the channel share its slot.

    Args:
        channel: a channel, or the watch of one, whose name has `:p` at its end.
    """
    plain = channel_of(channel)
    escaped = plain.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    return prefix + b":{" + escaped.encode() + (b"}:p" if is_watch(channel) else b"}")


def leases_key(prefix: bytes) -> bytes:
    """The key of the leases of processes; one for each prefix and server."""
    return prefix + b":{leases}"


def probe_name(prefix: bytes, probe_id: bytes, like: bytes | None = None) -> bytes:
    """The name of a delivery probe's channel; with `like`, in the slot of that name."""
    name = b"%s:probe:%s" % (prefix, probe_id)
    return name if like is None else name + like[like.index(b"{") :]


def slot_of(name: bytes) -> int:
    """The cluster slot of a server-side name, or of its hash tag if it has one.

    CRC16 (XMODEM) modulo 16384: the Redis cluster specification, "Key distribution model" and "Hash
    tags". `binascii.crc_hqx` is that CRC.
    """
    start = name.find(b"{")
    end = name.find(b"}", start + 1)
    tag = name[start + 1 : end] if start >= 0 and end > start + 1 else name
    return binascii.crc_hqx(tag, 0) % SLOTS
