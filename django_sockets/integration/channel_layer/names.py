"""Names of channels, and the bytes that a layer publishes.

A process-local name is `<prefix>.<owner>!<rest>`: the owner, 16 hexadecimal digits, is the part of
a layer on one event loop. Names with another form before the "!" belong to no owner; their messages
wait in a queue, like those of normal channels.

    first byte  contents
    D           a message to one channel: length of the name (1 byte), name, message
    R           the same; the sender is in the owner's process and has reserved room for it
    G           a message to a group: identifier (14 bytes), message
    O           an order of one owner to others: JSON, encrypted like a message
"""

from __future__ import annotations

import itertools
import os
import re
import struct

__all__ = [
    "DIRECT",
    "GROUP",
    "ORDER",
    "RESERVED",
    "GroupIds",
    "base_of",
    "direct",
    "new_owner",
    "owner_of",
    "read_direct",
    "read_group",
]

DIRECT = b"D"
RESERVED = b"R"
GROUP = b"G"
ORDER = b"O"

_OWNER = re.compile(r"(?:.*\.)?([0-9a-f]{16})!")
_ID = struct.Struct(">6sQ")


def new_owner() -> str:
    """A new owner, unique among all processes."""
    return os.urandom(8).hex()


def owner_of(channel: str) -> str | None:
    """The owner in a process-local name; None for every other name."""
    if "!" not in channel:
        return None
    found = _OWNER.match(channel)
    return None if found is None else found[1]


def base_of(channel: str) -> str:
    """The name up to and including the "!", or the whole name without one."""
    return channel[: channel.index("!") + 1] if "!" in channel else channel


def direct(kind: bytes, channel: str, message: bytes) -> bytes:
    """The bytes of a message to one channel.

    Args:
        channel: at most 255 ASCII characters.
    """
    name = channel.encode("ascii")
    return b"%c%c%b%b" % (kind, len(name), name, message)


def read_direct(payload: bytes) -> tuple[str, bytes]:
    """The channel and the message of a direct payload.

    Raises:
        ValueError: it is none.
    """
    if payload[:1] not in (DIRECT, RESERVED) or len(payload) < 2:
        raise ValueError("not a message to a channel")
    end = 2 + payload[1]
    if len(payload) < end:
        raise ValueError("the name of the channel is cut off")
    return payload[2:end].decode("ascii"), payload[end:]


class GroupIds:
    """The identifiers of the messages that one process sends to groups."""

    def __init__(self) -> None:
        self._process = os.urandom(6)
        self._numbers = itertools.count()

    def pack(self, message: bytes) -> bytes:
        """The bytes of a message to a group."""
        return GROUP + _ID.pack(self._process, next(self._numbers)) + message


def read_group(payload: bytes) -> tuple[bytes, bytes]:
    """The identifier and the message of a group payload.

    Raises:
        ValueError: it is none.
    """
    end = 1 + _ID.size
    if payload[:1] != GROUP or len(payload) < end:
        raise ValueError("not a message to a group")
    return payload[1:end], payload[end:]
