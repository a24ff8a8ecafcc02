"""What a channel is called on the server, its cluster slot, and the commands of pub/sub."""

from __future__ import annotations

import binascii
from typing import NamedTuple

__all__ = ["PLAIN", "SHARDED", "SLOTS", "PubSubCommands", "probe_name", "server_name", "slot_of"]

SLOTS = 16384


class PubSubCommands(NamedTuple):
    """The commands of one kind of pub/sub, and the kinds of the pushes that come back.

    Attributes:
        by_slot: one command may name channels of a single slot only.
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
    """`<prefix>:{<channel>}`: with one hash tag, so that later keys share the slot."""
    escaped = channel.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    return prefix + b":{" + escaped.encode() + b"}"


def probe_name(prefix: bytes, probe_id: bytes, like: bytes | None = None) -> bytes:
    """The name of a delivery probe; with `like`, in the slot of that channel's name."""
    name = b"%s:probe:%s" % (prefix, probe_id)
    return name if like is None else name + like[like.index(b"{") :]


def slot_of(name: bytes) -> int:
    """The cluster slot of a server-side name: of its hash tag, if it has one.

    CRC16 (XMODEM) modulo 16384: the Redis cluster specification, "Key distribution model" and "Hash
    tags". `binascii.crc_hqx` is that CRC.
    """
    start = name.find(b"{")
    end = name.find(b"}", start + 1)
    tag = name[start + 1 : end] if start >= 0 and end > start + 1 else name
    return binascii.crc_hqx(tag, 0) % SLOTS
