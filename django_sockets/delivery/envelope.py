"""The wire envelope: a small binary header before every payload.

The counters in it form a chain for each publisher and channel. `Publisher` writes the chain here;
`sequence` reads it.

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

    type  value
    1     id of a socket that must not get the message
    2     set aside
    3     8 bytes: microseconds from the publisher's previous message on this channel to this one,
          rounded down; only where the counter at offset 24 is not 0

Numbers are big-endian.
"""

from __future__ import annotations

import os
import random
import struct
import time
from array import array
from collections.abc import Sequence
from typing import TypeAlias
from weakref import WeakValueDictionary

from ..url import BrokerOptions

__all__ = [
    "HEADER_BYTES",
    "Envelope",
    "NewerVersion",
    "NotOurs",
    "Publisher",
    "published_at",
    "unpack",
]

_HEADER = struct.Struct(">4sBxH8sQQ")
_FIELD = struct.Struct(">BH")
# Most messages have one extension field, the age, right behind the header.
_WITH_AGE = struct.Struct(">4sBxH8sQQBHQ")
_MAGIC = b"\xd7DS"
_START = _MAGIC + b"\x01"
_TEXT = 1
_ORIGIN = 1
_AGE = 3
_AGE_VALUE = struct.Struct(">Q")
_AGE_FIELD_BYTES = _FIELD.size + _AGE_VALUE.size

HEADER_BYTES = _HEADER.size
_AGED_BYTES = _WITH_AGE.size
_unpack_header = _HEADER.unpack_from
_unpack_with_age = _WITH_AGE.unpack_from


class NotOurs(Exception):
    """The payload has no envelope of ours: another program wrote on the channel."""


class NewerVersion(Exception):
    """The envelope is of a newer major version than this reader knows."""


Envelope: TypeAlias = tuple[bytes, int, int, int | None, bool, bytes | None, bytes]
"""Publisher, counter, previous counter, age of the previous message in microseconds (None: not
told), whether it is text, origin, payload. A plain tuple: the hub unpacks every message, and a
named one takes longer to make."""


class Publisher:
    """The publishing end of the chain: one for each hub.

    It remembers its last message on each of the channels it publishes to, up to a bound. Beyond
    the bound, a channel takes the place of a random one. A forgotten channel's next message has
    the previous counter 0, so that subscribers cannot tell whether one before it was lost. With
    twice as many channels in use as are remembered, about one message in five still tells;
    the cost of a header stays what it was.

    Args:
        channels_remembered: the bound; a remembered channel takes about 150 bytes.
    """

    def __init__(self, channels_remembered: int = BrokerOptions.channels_remembered) -> None:
        self.id = os.urandom(8)
        self._counter = 0
        self._recent = array("d", bytes(8 * RECENT_MESSAGES))
        _local[self.id] = self
        self._most = channels_remembered
        # The memory is a table of rows; arrays hold numbers at 8 bytes each, without objects.
        self._rows: dict[str, int] = {}
        self._names: list[str] = []
        self._counters = array("Q")
        self._times = array("d")

    def headers(
        self, channels: Sequence[str], is_text: bool, origin: bytes | None = None
    ) -> list[bytes]:
        """The next header for each channel.

        A counter is used up whether or not the publish succeeds: what failed, or may have failed,
        is a hole that subscribers must hear of.
        """
        extension = b"" if origin is None else _FIELD.pack(_ORIGIN, len(origin)) + origin
        flags = _TEXT if is_text else 0
        now = time.monotonic()
        headers = []
        for channel in channels:
            self._counter = counter = self._counter + 1
            self._recent[counter % RECENT_MESSAGES] = now
            row = self._rows.get(channel)
            if row is None:
                self._remember(channel, counter, now)
                headers.append(
                    _HEADER.pack(_START, flags, len(extension), self.id, counter, 0) + extension
                )
                continue
            previous, age = self._counters[row], int((now - self._times[row]) * 1e6)
            self._counters[row] = counter
            self._times[row] = now
            header = _WITH_AGE.pack(
                _START,
                flags,
                _AGE_FIELD_BYTES + len(extension),
                self.id,
                counter,
                previous,
                _AGE,
                _AGE_VALUE.size,
                age,
            )
            headers.append(header + extension)
        return headers

    def _remember(self, channel: str, counter: int, now: float) -> None:
        row = len(self._names)
        if row < self._most:
            self._names.append(channel)
            self._counters.append(counter)
            self._times.append(now)
        else:
            # A random one: in turns, a cycle of one channel too many would find none of them.
            row = random.randrange(row)  # noqa: S311
            del self._rows[self._names[row]]
            self._names[row] = channel
            self._counters[row] = counter
            self._times[row] = now
        self._rows[channel] = row

    def published_at(self, counter: int) -> float | None:
        """When a message was published (`time.monotonic`), for the most recent ones."""
        if not max(0, self._counter - RECENT_MESSAGES) < counter <= self._counter:
            return None
        return self._recent[counter % RECENT_MESSAGES]


RECENT_MESSAGES = 4096
"""Of which a publisher remembers the time: more than are on their way in most processes."""

_local: WeakValueDictionary[bytes, Publisher] = WeakValueDictionary()


def published_at(publisher: bytes, counter: int) -> float | None:
    """When a message of this process was published (`time.monotonic`), if that is known."""
    local = _local.get(publisher)
    return None if local is None else local.published_at(counter)


def unpack(message: bytes) -> Envelope:
    """Take a message apart.

    Raises:
        NotOurs: no envelope, or a damaged one.
        NewerVersion: an envelope that only a newer reader understands.
    """
    try:
        start, flags, extension, publisher, counter, previous, kind, length, age = _unpack_with_age(
            message
        )
    except struct.error:
        return _unpack_any(message)
    if (
        extension == _AGE_FIELD_BYTES
        and kind == _AGE
        and length == _AGE_VALUE.size
        and start == _START
    ):
        payload = message[_AGED_BYTES:]
        return publisher, counter, previous, age, flags & _TEXT != 0, None, payload
    return _unpack_any(message)


def _unpack_any(message: bytes) -> Envelope:
    try:
        start, flags, extension, publisher, counter, previous = _unpack_header(message)
    except struct.error:
        raise NotOurs from None
    if start != _START:
        raise NewerVersion if start.startswith(_MAGIC) else NotOurs
    is_text = flags & _TEXT != 0
    if not extension:
        return publisher, counter, previous, None, is_text, None, message[HEADER_BYTES:]
    end = HEADER_BYTES + extension
    if len(message) < end:
        raise NotOurs
    fields = _fields(message[HEADER_BYTES:end])
    age = fields.get(_AGE, b"")
    age_us = _AGE_VALUE.unpack(age)[0] if len(age) == _AGE_VALUE.size else None
    return publisher, counter, previous, age_us, is_text, fields.get(_ORIGIN), message[end:]


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
