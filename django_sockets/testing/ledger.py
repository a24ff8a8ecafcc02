"""Compares the events of a subscriber with the messages that were published.

Every backend and every fault test proves this promise: no message arrives twice or out of order,
and each missing message is covered by a gap. The gap comes before the first message after the hole.
It covers messages that were published before the subscriber received the gap, and none that were
published later: at the gap an application loads its state again, which has only the earlier ones.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable

from ..deadlines import with_deadline
from ..delivery.events import Event, Events, Gap, Message
from ..hub.hub import Hub

__all__ = ["Ledger", "Listener", "check_stream", "listening"]


PATIENCE_SECONDS = 10.0
"""Default bound of each wait for an expected event."""
_NO_GAP = -math.inf


class Ledger:
    """Numbers the messages of one publisher.

    Args:
        name: the name of the publisher, 1..n characters without spaces.

    Attributes:
        numbers: channel -> the numbers published to it, in order.
        began: channel -> for each of these numbers, the `time.monotonic` before its publish.
    """

    def __init__(self, name: str = "publisher") -> None:
        self.name = name
        self.numbers: dict[str, list[int]] = {}
        self.began: dict[str, list[float]] = {}
        self._number = 0

    def write(self, *channels: str, pad_bytes: int = 0) -> bytes:
        """The payload of the next message, which is about to be published to `channels`."""
        self._number += 1
        now = time.monotonic()
        for channel in channels:
            self.numbers.setdefault(channel, []).append(self._number)
            self.began.setdefault(channel, []).append(now)
        return f"{self.name} {self._number} ".encode() + b"." * pad_bytes


def check_stream(
    events: Iterable[Event],
    *ledgers: Ledger,
    times: Iterable[float] | None = None,
    to_the_end: bool = True,
) -> list[tuple[str, str, int]]:
    """Compare the events of a subscriber, from the first one on, with the published messages.

    Args:
        events: the events of a subscriber that subscribed before the first message in the ledgers.
        ledgers: one for each publisher. Messages to a channel that is not in `events` count as lost
            without a gap.
        times: for each event, the `time.monotonic` at which the subscriber received it, in the
            process of the ledgers. A gap then covers only messages whose publish had begun by its
            time. Without `times`, a gap covers every hole before the next message.
        to_the_end: whether the last published messages must have arrived, too. Use False while they
            may be on their way. Default: True.

    Returns:
        The missing messages, which are covered by gaps: (publisher, channel, number).

    Raises:
        AssertionError: a message was delivered twice, out of order or changed; or it was lost, and
            no gap covers it.
    """
    if times is None:
        events = list(events)
        times = itertools.repeat(math.inf, len(events))
    comparison = _Comparison(ledgers)
    for event, at in zip(events, times, strict=True):
        if isinstance(event, Gap):
            comparison.gap(event, at)
        else:
            comparison.message(event)
    if to_the_end:
        comparison.end()
    return comparison.missing


_Key = tuple[str, str]
"""Publisher and channel."""


class _Comparison:
    """The state of `check_stream`.

    Attributes:
        missing: the missing messages so far that are covered by gaps.
    """

    def __init__(self, ledgers: Iterable[Ledger]) -> None:
        self.missing: list[tuple[str, str, int]] = []
        self._numbers: dict[_Key, list[int]] = {}
        self._began: dict[_Key, list[float]] = {}
        self._keys_of: dict[str, list[_Key]] = {}
        for ledger in ledgers:
            for channel in ledger.numbers:
                key = (ledger.name, channel)
                self._numbers[key] = ledger.numbers[channel]
                self._began[key] = ledger.began[channel]
                self._keys_of.setdefault(channel, []).append(key)
        self._position = dict.fromkeys(self._numbers, 0)
        # The time of the last gap since the last message.
        self._covered = dict.fromkeys(self._numbers, _NO_GAP)

    def gap(self, gap: Gap, at: float) -> None:
        for channel in gap.channels:
            self._covered.update(dict.fromkeys(self._keys_of.get(channel, ()), at))

    def message(self, message: Message) -> None:
        name, text, _ = message.payload.split(b" ", 2)
        key, number = (name.decode(), message.channel), int(text)
        numbers, place = self._numbers[key], self._position[key]
        if numbers[place : place + 1] != [number]:
            # The numbers are in ascending order, so that a binary search finds the place.
            place = bisect.bisect_left(numbers, number)
            if numbers[place : place + 1] != [number]:
                raise AssertionError(f"{key}: {number} was never published there")
            if place < self._position[key]:
                raise AssertionError(f"{key}: {number} came twice or after a newer one")
            self._skip(key, place, f"{number}")
        self._position[key] = place + 1
        self._covered[key] = _NO_GAP

    def end(self) -> None:
        """Check that no message is missing at the end."""
        for key, written in self._numbers.items():
            self._skip(key, len(written), "the end")

    def _skip(self, key: _Key, until: int, before: str) -> None:
        start, gap = self._position[key], self._covered[key]
        hole = self._numbers[key][start:until]
        lost = [n for n, at in zip(hole, self._began[key][start:until], strict=True) if at > gap]
        if lost:
            without = "a gap" if gap == _NO_GAP else "a gap since their publish began"
            raise AssertionError(f"{key}: {lost} lost without {without}, before {before}")
        self.missing.extend((*key, number) for number in hole)
        self._position[key] = until


class Listener:
    """Reads the events of a subscription when they come, and waits for certain events.

    Attributes:
        events: all events so far.
        times: the `time.monotonic` at which each event was received.
    """

    def __init__(self, source: Events) -> None:
        self.events: list[Event] = []
        self.times: list[float] = []
        self._source = source
        self._changed = asyncio.Event()

    async def read(self) -> None:
        """Read until the subscription ends."""
        async for event in self._source:
            # The time at which the hub queued the event would be too early: a reader loads its
            # state again after it has received the gap.
            self.times.append(time.monotonic())
            self.events.append(event)
            self._changed.set()

    def check(self, *ledgers: Ledger, to_the_end: bool = True) -> list[tuple[str, str, int]]:
        """`check_stream` of all events so far, with their times."""
        return check_stream(self.events, *ledgers, times=self.times, to_the_end=to_the_end)

    @property
    def messages(self) -> list[Message]:
        return [event for event in self.events if isinstance(event, Message)]

    @property
    def gaps(self) -> list[Gap]:
        return [event for event in self.events if isinstance(event, Gap)]

    async def until(
        self,
        wanted: Callable[[Event], bool],
        *,
        within_seconds: float | None = None,
        start: int = 0,
    ) -> int:
        """Wait for an event and return its place in `events`.

        Args:
            start: place from which to look.

        Raises:
            AssertionError: the event did not come in time.
        """

        async def look() -> int:
            place = start
            while True:
                while place < len(self.events):
                    if wanted(self.events[place]):
                        return place
                    place += 1
                self._changed.clear()
                await self._changed.wait()

        if within_seconds is None:
            within_seconds = PATIENCE_SECONDS
        try:
            return await with_deadline(within_seconds, look())
        except asyncio.TimeoutError:
            seen = [_short(event) for event in self.events[start:][-5:]]
            raise AssertionError(
                f"not heard within {within_seconds:g} s; the last of "
                f"{len(self.events) - start} events: {seen}"
            ) from None

    async def until_payload(
        self, payload: bytes, *, channel: str | None = None, within_seconds: float | None = None
    ) -> int:
        """Wait for a message with this payload, on one channel or on any."""
        return await self.until(
            lambda event: (
                isinstance(event, Message)
                and event.payload == payload
                and channel in (None, event.channel)
            ),
            within_seconds=within_seconds,
        )

    async def until_messages(self, count: int, *, within_seconds: float | None = None) -> None:
        """Wait until `count` messages have been received.

        Args:
            within_seconds: the longest wait for the next event, so that the bound does not depend
                on the number of messages. Default: `PATIENCE_SECONDS`.

        Raises:
            AssertionError: no further event came in time.
        """
        place = found = 0
        while True:
            while place < len(self.events):
                found += isinstance(self.events[place], Message)
                place += 1
            if found >= count:
                return
            await self.until(lambda _: True, within_seconds=within_seconds, start=place)

    async def until_gap(self, *, within_seconds: float | None = None, start: int = 0) -> int:
        """Wait for a gap."""
        return await self.until(
            lambda event: isinstance(event, Gap), within_seconds=within_seconds, start=start
        )


@contextlib.asynccontextmanager
async def listening(hub: Hub, *channels: str) -> AsyncIterator[Listener]:
    """Subscribe, and read the events while the block runs."""
    async with hub.subscribe(*channels) as source:
        listener = Listener(source)
        reading = asyncio.create_task(listener.read(), name="listener")
        try:
            yield listener
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled():
                reading.result()


def _short(event: Event) -> str:
    text = repr(event)
    return text if len(text) < 200 else text[:200] + "..."
