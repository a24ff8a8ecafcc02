"""What was published, held against what one subscriber's stream of events tells.

The promise that every backend and every fault test comes down to: no message twice, none out of
order, and each one that is missing is inside a gap, which stands before the first message after the
hole.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable

from ..events import Event, Events, Gap, Message
from ..hub import Hub

__all__ = ["Ledger", "Listener", "check_stream", "listening"]


PATIENCE_SECONDS = 10.0
"""How long to wait for what is certain to come, unless a test says otherwise."""


class Ledger:
    """Numbers what one publisher publishes.

    Args:
        name: of the publisher, 1..n characters without spaces.

    Attributes:
        numbers: channel -> the numbers published there, in order.
    """

    def __init__(self, name: str = "publisher") -> None:
        self.name = name
        self.numbers: dict[str, list[int]] = {}
        self._number = 0

    def write(self, *channels: str, pad_bytes: int = 0) -> bytes:
        """The payload of the next message, which is about to be published to `channels`."""
        self._number += 1
        for channel in channels:
            self.numbers.setdefault(channel, []).append(self._number)
        return f"{self.name} {self._number} ".encode() + b"." * pad_bytes


def check_stream(
    events: Iterable[Event], *ledgers: Ledger, to_the_end: bool = True
) -> list[tuple[str, str, int]]:
    """Hold a subscriber's events, from its first one to the present, against what was published.

    Args:
        events: of a subscriber that was there before the first message in the ledgers.
        ledgers: one for each publisher. What was published on channels that `events` never names
            counts as lost without a word.
        to_the_end: also what was published last must have come; False while it may be on its way.

    Returns:
        What is missing, inside gaps: (publisher, channel, number).

    Raises:
        AssertionError: a message was delivered twice, out of order, changed, or lost silently.
    """
    numbers = {
        (ledger.name, channel): numbers
        for ledger in ledgers
        for channel, numbers in ledger.numbers.items()
    }
    keys_of: dict[str, list[tuple[str, str]]] = {}
    for key in numbers:
        keys_of.setdefault(key[1], []).append(key)
    position = dict.fromkeys(numbers, 0)
    covered = dict.fromkeys(numbers, False)
    missing: list[tuple[str, str, int]] = []

    def skip(key: tuple[str, str], until: int, before: str) -> None:
        hole = numbers[key][position[key] : until]
        if hole and not covered[key]:
            raise AssertionError(f"{key}: {hole} lost without a gap before {before}")
        missing.extend((*key, number) for number in hole)
        position[key] = until

    for event in events:
        if isinstance(event, Gap):
            for channel in event.channels:
                covered.update(dict.fromkeys(keys_of.get(channel, ()), True))
            continue
        name, text, _ = event.payload.split(b" ", 2)
        key, number = (name.decode(), event.channel), int(text)
        at = position[key]
        if numbers[key][at : at + 1] != [number]:
            # They were written in ascending order, so that a place is found without an index.
            at = bisect.bisect_left(numbers[key], number)
            if numbers[key][at : at + 1] != [number]:
                raise AssertionError(f"{key}: {number} was never published there")
            if at < position[key]:
                raise AssertionError(f"{key}: {number} came twice or after a newer one")
            skip(key, at, f"{number}")
        position[key] = at + 1
        covered[key] = False
    for key, written in numbers.items() if to_the_end else ():
        skip(key, len(written), "the end")
    return missing


class Listener:
    """Reads the events of one subscription as they come, and can be waited on.

    Attributes:
        events: everything so far.
    """

    def __init__(self, source: Events) -> None:
        self.events: list[Event] = []
        self._source = source
        self._changed = asyncio.Event()

    async def read(self) -> None:
        """Read until the subscription ends."""
        async for event in self._source:
            self.events.append(event)
            self._changed.set()

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
            AssertionError: it did not come in time.
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
            return await asyncio.wait_for(look(), within_seconds)
        except asyncio.TimeoutError:
            seen = [_short(event) for event in self.events[start:][-5:]]
            raise AssertionError(
                f"not heard within {within_seconds:g} s; the last of "
                f"{len(self.events) - start} events: {seen}"
            ) from None

    async def until_payload(
        self, payload: bytes, *, channel: str | None = None, within_seconds: float | None = None
    ) -> int:
        """Wait for a message with this payload, on a certain channel or on any."""
        return await self.until(
            lambda event: (
                isinstance(event, Message)
                and event.payload == payload
                and channel in (None, event.channel)
            ),
            within_seconds=within_seconds,
        )

    async def until_gap(self, *, within_seconds: float | None = None, start: int = 0) -> int:
        """Wait for a gap."""
        return await self.until(
            lambda event: isinstance(event, Gap), within_seconds=within_seconds, start=start
        )


@contextlib.asynccontextmanager
async def listening(hub: Hub, *channels: str) -> AsyncIterator[Listener]:
    """Subscribe and keep reading for the length of an `async with`."""
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
