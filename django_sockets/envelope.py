"""The wire envelope: a small binary header before every payload, and the chain it carries.

    offset  size  field
    0       3     magic D7 44 53 (it starts no UTF-8 text, hence no JSON of another program)
    3       1     major version, 1; a reader takes a newer one for a gap
    4       1     flags: bit 0, the payload is text; the other bits are sent as 0 and ignored
    5       1     reserved, sent as 0 and ignored
    6       2     length of the extension fields in bytes
    8       8     publisher: random id of one hub
    16      8     counter of this message at its publisher, from 1
    24      8     counter of its previous message on this channel, 0 for unknown
    32      n     extension fields: type (1 byte), length (2), value; unknown types are skipped
    32+n          payload

Numbers are big-endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import ClassVar, TypeAlias

import msgspec

__all__ = [
    "HEADER_BYTES",
    "Chain",
    "Envelope",
    "NewerVersion",
    "NotOurs",
    "Publisher",
    "unpack",
]

_HEADER = struct.Struct(">4sBxH8sQQ")
_FIELD = struct.Struct(">BH")
_MAGIC = b"\xd7DS"
_START = _MAGIC + b"\x01"
_TEXT = 1
_ORIGIN = 1

HEADER_BYTES = _HEADER.size
_unpack_header = _HEADER.unpack_from
CHANNELS_REMEMBERED = 100_000
"""Channels of which one publisher remembers its last counter; beyond, the oldest become unknown."""
PUBLISHERS_REMEMBERED = 1024
"""Publishers of which one channel remembers the last counter."""


class NotOurs(Exception):
    """The payload has no envelope of ours: another program wrote on the channel."""


class NewerVersion(Exception):
    """The envelope is of a newer major version than this reader knows."""


Envelope: TypeAlias = tuple[bytes, int, int, bool, bytes | None, bytes]
"""Publisher, counter, previous counter, whether it is text, origin, payload. A plain tuple: the
hub unpacks every message, and a named one takes longer to make."""


class Publisher:
    """The publishing end of the chain: one for each hub."""

    def __init__(self) -> None:
        self.id = os.urandom(8)
        self._counter = 0
        self._last: dict[str, int] = {}

    def headers(
        self, channels: Sequence[str], is_text: bool, origin: bytes | None = None
    ) -> list[bytes]:
        """The next header for each channel.

        A counter is used up whether or not the publish succeeds: what failed, or may have failed,
        is a hole that subscribers must hear of.
        """
        extension = b"" if origin is None else _FIELD.pack(_ORIGIN, len(origin)) + origin
        flags = _TEXT if is_text else 0
        last = self._last
        headers = []
        for channel in channels:
            self._counter += 1
            # Taken out and put back, the dict stays ordered by last use.
            previous = last.pop(channel, 0)
            last[channel] = self._counter
            headers.append(
                _HEADER.pack(_START, flags, len(extension), self.id, self._counter, previous)
                + extension
            )
        while len(last) > CHANNELS_REMEMBERED:
            del last[next(iter(last))]
        return headers


def unpack(message: bytes) -> Envelope:
    """Take a message apart.

    Raises:
        NotOurs: no envelope, or a damaged one.
        NewerVersion: an envelope that only a newer reader understands.
    """
    try:
        start, flags, extension, publisher, counter, previous = _unpack_header(message)
    except struct.error:
        raise NotOurs from None
    if start != _START:
        raise NewerVersion if start.startswith(_MAGIC) else NotOurs
    if not extension:
        return publisher, counter, previous, flags & _TEXT != 0, None, message[HEADER_BYTES:]
    end = HEADER_BYTES + extension
    if len(message) < end:
        raise NotOurs
    origin = _fields(message[HEADER_BYTES:end]).get(_ORIGIN)
    return publisher, counter, previous, flags & _TEXT != 0, origin, message[end:]


def _fields(data: bytes) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    offset = 0
    while offset < len(data):
        try:
            kind, length = _FIELD.unpack_from(data, offset)
        except struct.error:
            raise NotOurs from None
        offset += _FIELD.size
        if offset + length > len(data):
            raise NotOurs
        fields[kind] = data[offset : offset + length]
        offset += length
    return fields


class Chain(msgspec.Struct, eq=False):
    """The receiving end of the chain for one channel: what was seen of each publisher.

    A message not newer than the last one seen is a repetition or came late, and is dropped. One
    whose `previous` is neither 0 nor the last seen tells of a hole.

    The publisher heard last is kept apart from the others: most channels have no other, and need
    no dict then.
    """

    DROP: ClassVar = 0
    DELIVER: ClassVar = 1
    GAP: ClassVar = 2
    LATE: ClassVar = 3

    _publisher: bytes = b""
    # Its last counter seen: 0 for none; negative, where everything since that counter is covered
    # by a gap already signalled.
    _last: int = 0
    _others: dict[bytes, int] | None = None
    # Publisher -> the first counter seen of it, where that was not its first message.
    _first: dict[bytes, int] | None = None

    def take(self, publisher: bytes, counter: int, previous: int) -> int:
        """Note a message.

        Returns:
            DELIVER; GAP: signal a gap, then deliver; DROP; LATE: drop, and signal a gap, because
            it precedes all that was seen of its publisher and was never delivered.
        """
        if publisher != self._publisher:
            self._turn_to(publisher)
        last = self._last
        if last == previous and counter > last:  # By far the most messages.
            self._last = counter
            return self.DELIVER
        first = self._first
        if not last:
            if first is None:
                first = self._first = {}
            first[publisher] = self._last = counter
            return self.DELIVER
        if counter <= abs(last):
            if first is not None and counter < first.get(publisher, 0):
                first[publisher] = counter
                return self.LATE
            return self.DROP
        self._last = counter
        return self.GAP if previous and last > 0 else self.DELIVER

    def _turn_to(self, publisher: bytes) -> None:
        before, self._publisher = self._publisher, publisher
        if not before:
            return
        others = self._others
        if others is None:
            others = self._others = {}
        others[before] = self._last  # Behind those heard before it.
        self._last = others.pop(publisher, 0)
        if len(others) >= PUBLISHERS_REMEMBERED:
            oldest = next(iter(others))
            del others[oldest]
            if self._first is not None:
                self._first.pop(oldest, None)

    def resynchronised(self) -> None:
        """A gap was signalled: what is missing up to the next message is covered."""
        self._last = -abs(self._last)
        others = self._others or {}
        for publisher, last in others.items():
            others[publisher] = -abs(last)
