"""The wire envelope: a binary header before every payload.

The header holds counters that let subscribers detect missing, late and repeated messages.
`Publisher` writes the counters; `sequence` checks them.

    offset  size  field
    0       3     magic D7 44 53 (no UTF-8 text starts with it, so no JSON of another program)
    3       1     major version, 1; a reader signals a gap for a newer one
    4       1     flags: bit 0, the payload is text; bit 1, do not compress its frames; the other
                  bits are sent as 0 and ignored
    5       1     reserved, sent as 0 and ignored
    6       2     length of the extension fields in bytes
    8       8     publisher: random id of one hub
    16      8     counter of this message at its publisher, starting at 1
    24      8     counter of the publisher's previous message on this channel; 0 for unknown
    32      n     extension fields: type (1 byte), length (2), value; unknown types are skipped
    32+n          payload

    type  value
    1     id of a socket that must not receive the message
    2     40 bytes, the last field: the place of a kept message in the history of its channel: epoch
          (8), offset as 16 decimal digits, tag of the message before (16). The tag of a message is
          its bytes 8 to 23. The broker adds this field; see `history`
    3     8 bytes: microseconds from the publisher's previous message on this channel to this one,
          rounded down; only if the counter at offset 24 is not 0
    4     55 bytes: the `traceparent` of the publish, only if its trace is recorded

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

from ..history import FIELD_BYTES
from ..url import BrokerOptions

__all__ = [
    "HEADER_BYTES",
    "IS_TEXT",
    "KEPT",
    "KEPT_MARKS",
    "PLACE_START",
    "RESERVE_BYTES",
    "UNCOMPRESSED",
    "Envelope",
    "HistoryLink",
    "NewerVersion",
    "NotOurs",
    "Publisher",
    "published_at",
    "published_at_of",
    "traceparent_of",
    "unpack",
    "unpack_kept",
]

# Not the state of `random`, which the application may have seeded.
_random = random.SystemRandom()

_HEADER = struct.Struct(">4sBxH8sQQ")
_FIELD = struct.Struct(">BH")
# A header with the age as its only extension field, as in most messages.
_WITH_AGE = struct.Struct(">4sBxH8sQQBHQ")
# The same with the place in the history behind it, as in most kept messages.
_WITH_PLACE = struct.Struct(">4sBxH8sQQBHQBH8s16s16s")
KEPT = struct.Struct(">4sBxH8sQQ3sQ11s16s16s")
"""The header of most kept messages: start, flags, length of the extension fields, publisher,
counter, previous counter, begin of the age field, age, begin of the place field and epoch, offset,
tag before. `KEPT_MARKS` has the values of the first, third and seventh one."""
_MAGIC = b"\xd7DS"
_START = _MAGIC + b"\x01"
IS_TEXT = 1
UNCOMPRESSED = 2
"""Bits of the flags."""
_ORIGIN = 1
_PLACE = 2
_PLACE_BYTES = 40
_AGE = 3
_AGE_VALUE = struct.Struct(">Q")
_AGE_FIELD_BYTES = _FIELD.size + _AGE_VALUE.size
_TRACE = 4
_TRACE_BYTES = 55

PLACE_START = _FIELD.pack(_PLACE, _PLACE_BYTES)
KEPT_MARKS = _START, _AGE_FIELD_BYTES + FIELD_BYTES, _FIELD.pack(_AGE, _AGE_VALUE.size)
HEADER_BYTES = _HEADER.size
RESERVE_BYTES = 128
"""Room that `max_payload_bytes` leaves for the extension fields."""
_AGED_BYTES = _WITH_AGE.size
_PLACED_BYTES = _WITH_PLACE.size
_unpack_header = _HEADER.unpack_from
_unpack_with_age = _WITH_AGE.unpack_from
_unpack_with_place = _WITH_PLACE.unpack_from


class NotOurs(Exception):
    """The payload has no valid envelope: another program has published it."""


class NewerVersion(Exception):
    """The envelope has a newer major version than this reader knows."""


Envelope: TypeAlias = tuple[bytes, int, int, int | None, int, bytes | None, bytes]
"""Publisher, counter, previous counter, age of the previous message in microseconds or None,
flags, origin, payload. A plain tuple, because a named one takes longer to create and the hub
unpacks every message."""


HistoryLink: TypeAlias = tuple[bytes, int, bytes]
"""The place of a kept message: epoch, offset, and the tag of the message before it."""


class Publisher:
    """Writes the headers of one hub.

    A publisher remembers its last message on each channel, up to a number of channels. When the
    number is reached, a new channel replaces a random one. The next message on a forgotten channel
    has the previous counter 0, so subscribers cannot detect whether a message before it was lost.
    With twice as many channels in use as are remembered, about one message in five still has a
    previous counter. The cost of a header does not change.

    Args:
        channels_remembered: the number of channels. Each takes about 150 bytes.
    """

    def __init__(self, channels_remembered: int = BrokerOptions.channels_remembered) -> None:
        self.id = os.urandom(8)
        self._counter = 0
        self._recent = array("d", bytes(8 * RECENT_MESSAGES))
        _local[self.id] = self
        self._most = channels_remembered
        # A table with one row for each channel. An array holds a number in 8 bytes.
        self._rows: dict[str, int] = {}
        self._names: list[str] = []
        self._counters = array("Q")
        self._times = array("d")

    def headers(
        self,
        channels: Sequence[str],
        is_text: bool,
        origin: bytes | None = None,
        compress: bool = True,
        traceparent: str | None = None,
    ) -> list[bytes]:
        """The next header for each channel.

        A counter is used even if the publish fails. Subscribers then detect the missing message.

        Args:
            traceparent: the context of the publish if its trace is recorded, 55 ASCII characters.
        """
        extension = b"" if origin is None else _FIELD.pack(_ORIGIN, len(origin)) + origin
        if traceparent is not None:
            extension += _FIELD.pack(_TRACE, _TRACE_BYTES) + traceparent.encode("ascii")
        flags = (IS_TEXT if is_text else 0) | (0 if compress else UNCOMPRESSED)
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
            # Random, because replacing in order would forget every channel of a cycle that is one
            # channel too long.
            row = _random.randrange(row)
            del self._rows[self._names[row]]
            self._names[row] = channel
            self._counters[row] = counter
            self._times[row] = now
        self._rows[channel] = row

    def published_at(self, counter: int) -> float | None:
        """The time of a message (`time.monotonic`); None if it is not one of the most recent."""
        if not max(0, self._counter - RECENT_MESSAGES) < counter <= self._counter:
            return None
        return self._recent[counter % RECENT_MESSAGES]


RECENT_MESSAGES = 4096
"""The number of messages whose time a publisher remembers. Few processes have more in flight."""

_local: WeakValueDictionary[bytes, Publisher] = WeakValueDictionary()


def published_at(publisher: bytes, counter: int) -> float | None:
    """The time of a message of this process (`time.monotonic`); None if it is unknown."""
    local = _local.get(publisher)
    return None if local is None else local.published_at(counter)


def published_at_of(message: bytes) -> float | None:
    """The time of a message with its envelope; see `published_at`."""
    if len(message) < HEADER_BYTES or not message.startswith(_START):
        return None
    return published_at(message[8:16], int.from_bytes(message[16:24], "big"))


def traceparent_of(message: bytes) -> str | None:
    """The context of the publish of a message that `unpack` accepts; None if it has none."""
    if not message[6] and message[7] < _FIELD.size + _TRACE_BYTES:  # True for nearly every message.
        return None
    extension = int.from_bytes(message[6:8], "big")
    trace = _fields(message[HEADER_BYTES : HEADER_BYTES + extension]).get(_TRACE, b"")
    return trace.decode("ascii") if len(trace) == _TRACE_BYTES and trace.isascii() else None


def unpack(message: bytes) -> Envelope:
    """Split a message into the parts of its envelope and the payload.

    Raises:
        NotOurs: the message has no envelope, or a damaged one.
        NewerVersion: the envelope has a newer major version.
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
        return publisher, counter, previous, age, flags, None, payload
    return _unpack_any(message)


def unpack_kept(message: bytes) -> tuple[Envelope, HistoryLink | None]:
    """Split a message of a channel with history; also returns its place, if it was kept.

    Raises:
        NotOurs, NewerVersion: see `unpack`.
    """
    try:
        (
            start, flags, extension, publisher, counter, previous,
            kind, length, age, last_kind, last_length, epoch, digits, before,
        ) = _unpack_with_place(message)  # fmt: skip
    except struct.error:
        return _unpack_any_kept(message)
    if (
        extension == _AGE_FIELD_BYTES + FIELD_BYTES
        and kind == _AGE
        and length == _AGE_VALUE.size
        and last_kind == _PLACE
        and last_length == _PLACE_BYTES
        and start == _START
        and digits.isdigit()
    ):
        payload = message[_PLACED_BYTES:]
        envelope = publisher, counter, previous, age, flags, None, payload
        return envelope, (epoch, int(digits), before)
    return _unpack_any_kept(message)


def _unpack_any_kept(message: bytes) -> tuple[Envelope, HistoryLink | None]:
    envelope = unpack(message)
    end = len(message) - len(envelope[-1])
    place = _fields(message[HEADER_BYTES:end]).get(_PLACE, b"")
    if len(place) != _PLACE_BYTES or not place[8:24].isdigit():
        return envelope, None
    return envelope, (place[:8], int(place[8:24]), place[24:])


def _unpack_any(message: bytes) -> Envelope:
    try:
        start, flags, extension, publisher, counter, previous = _unpack_header(message)
    except struct.error:
        raise NotOurs from None
    if start != _START:
        raise NewerVersion if start.startswith(_MAGIC) else NotOurs
    if not extension:
        return publisher, counter, previous, None, flags, None, message[HEADER_BYTES:]
    end = HEADER_BYTES + extension
    if len(message) < end:
        raise NotOurs
    fields = _fields(message[HEADER_BYTES:end])
    age = fields.get(_AGE, b"")
    age_us = _AGE_VALUE.unpack(age)[0] if len(age) == _AGE_VALUE.size else None
    return publisher, counter, previous, age_us, flags, fields.get(_ORIGIN), message[end:]


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
