"""The reading end of the chain: what one channel has seen of each publisher, and what is missing.

Each message carries its publisher's counter, the counter of the publisher's previous message on the
channel, and the time between the two (`envelope`). From these a subscriber tells repeated, late and
missing messages apart. It needs no clock in common with the publisher.
"""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import ClassVar

import msgspec

from ..url import BrokerOptions
from .envelope import published_at

__all__ = ["Chain", "Memory"]

IN_ALL = 65_536
LEAST = 4


class Memory:
    """How many publishers each channel of one hub may remember, besides the last one heard.

    A remembered publisher takes about 150 bytes. All channels of a hub together remember 65,536,
    about 10 MB: with more than that divided by `per_channel` channels each has an equal share, but
    at least 4.

    Args:
        per_channel: the most for one channel.
        channels: the channels of the hub.
    """

    def __init__(
        self,
        per_channel: int = BrokerOptions.publishers_remembered,
        channels: Sized = (),
    ) -> None:
        self._per_channel = per_channel
        self._channels = channels

    @property
    def share(self) -> int:
        """For one channel, at this moment."""
        fair = IN_ALL // (len(self._channels) or 1)
        return max(LEAST, min(self._per_channel, fair))


class Chain(msgspec.Struct, eq=False):
    """What one channel has seen of each publisher.

    A message not newer than the last one seen of its publisher is a repetition or came late, and is
    dropped. A message tells of a hole before it if its previous counter is neither 0 (unknown) nor
    the last one seen. A hole is a gap, unless a gap in its place covers it: one that was signalled
    after the last message seen of this publisher, and after everything in the hole was published.
    The first message of a publisher tells of a hole if the message before it was published after
    the subscription had begun.

    All times are those of `time.monotonic`, in seconds.

    Attributes:
        memory: says how many publishers may be remembered.
        complete_since: what any publisher published after this time has been seen, or a gap covers
            it; infinite until the server has acknowledged the subscription. It is the time of the
            acknowledgement or of the last gap, and later where publishers had to be forgotten.
    """

    DROP: ClassVar = 0
    DELIVER: ClassVar = 1
    GAP: ClassVar = 2
    LATE: ClassVar = 3

    memory: Memory
    complete_since: float = math.inf
    _gap_at: float = -math.inf
    # The publisher heard last is kept apart from the others: most channels have no other, and need
    # no dict then. Its last counter seen is 0 for none, and negative if a gap was signalled since.
    _publisher: bytes = b""
    _last: int = 0
    # Publisher -> last counter seen, in two generations. A publisher that is heard moves to the
    # younger one. When that is full, the older one is forgotten and the younger takes its place.
    _others: dict[bytes, int] | None = None
    _older: dict[bytes, int] | None = None
    _older_at: float = -math.inf
    # Publisher -> the first counter seen of it, where that was not its first message.
    _first: dict[bytes, int] | None = None

    def take(
        self,
        publisher: bytes,
        counter: int,
        previous: int,
        age_us: int | None = None,
        arrived_at: float = math.inf,
    ) -> int:
        """Note a message.

        Args:
            publisher, counter, previous, age_us: from the envelope.
            arrived_at: when the message, or the batch that it is in, was received.

        Returns:
            DELIVER; GAP: signal a gap, then deliver; DROP; LATE: drop, and signal a gap, because
            it precedes all that was seen of its publisher and was never delivered.
        """
        if publisher != self._publisher:
            self._turn_to(publisher, arrived_at)
        last = self._last
        if last == previous and counter > last:  # By far the most messages.
            self._last = counter
            return self.DELIVER
        # The previous message was published at this time. For a message of another process, it is
        # an upper bound, because nobody knows how long the message took to arrive. If the age is
        # unknown it is not a number, which is neither more nor less than any.
        previous_at = math.nan
        if age_us is not None:
            previous_at = (published_at(publisher, counter) or arrived_at) - age_us / 1e6
        first = self._first
        if not last:
            if first is None:
                first = self._first = {}
            first[publisher] = self._last = counter
            return self.GAP if previous_at > self.complete_since else self.DELIVER
        if counter <= abs(last):
            if first is not None and counter < first.get(publisher, 0):
                first[publisher] = counter
                return self.LATE
            return self.DROP
        self._last = counter
        if not previous or previous == -last or (last < 0 and previous_at <= self._gap_at):
            return self.DELIVER
        return self.GAP

    def _turn_to(self, publisher: bytes, now: float) -> None:
        """Make another publisher the one that was heard last."""
        before, self._publisher = self._publisher, publisher
        if not before:
            return
        others = self._others
        if others is None:
            others = self._others = {}
        others[before] = self._last
        last = others.pop(publisher, 0)
        if not last and self._older is not None:
            last = self._older.pop(publisher, 0)
        self._last = last
        if len(others) >= self.memory.share // 2:
            self._forget_older(others, now)

    def _forget_older(self, others: dict[bytes, int], now: float) -> None:
        if self._older:
            # All who were heard after it became the older one are still remembered.
            self.complete_since = max(self.complete_since, self._older_at)
        self._older, self._older_at, self._others = others, now, None
        if self._first:
            kept = {*others, self._publisher}
            self._first = {name: n for name, n in self._first.items() if name in kept}

    def acknowledged(self, now: float) -> None:
        """The server has acknowledged the subscription."""
        if self.complete_since == math.inf:
            self.complete_since = now

    def gap_signalled(self, now: float) -> None:
        """The subscribers got a gap, of a lost link: it covers what was published so far."""
        self._gap_at = now
        self._last = -abs(self._last)
        for seen in (self._others, self._older):
            if seen:
                seen.update((publisher, -abs(last)) for publisher, last in seen.items())
        if self.complete_since != math.inf:
            self.complete_since = max(self.complete_since, now)
