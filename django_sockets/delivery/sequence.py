"""Detects repeated, late and missing messages of each publisher on one channel.

Each message carries a counter of its publisher, the counter of the publisher's previous message on
the channel, and the time between the two messages (see `envelope`). The tracker compares them with
the messages that the channel has received. It needs no common clock with the publisher.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sized

import msgspec

from ..url import BrokerOptions
from .envelope import published_at

__all__ = ["PublisherBudget", "SequenceTracker", "Verdict"]

TOTAL_PUBLISHERS = 65_536
MIN_PUBLISHERS_PER_CHANNEL = 4


class PublisherBudget:
    """The number of publishers that each channel of one hub may remember, besides the last one.

    A remembered publisher takes about 150 bytes. All channels of a hub together remember 65,536
    publishers, which is about 10 MB. If `per_channel` times the number of channels is more, each
    channel has an equal share, and at least 4 publishers.

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
        """The number for one channel at this moment."""
        fair = TOTAL_PUBLISHERS // (len(self._channels) or 1)
        return max(MIN_PUBLISHERS_PER_CHANNEL, min(self._per_channel, fair))


class Verdict(enum.Enum):
    """What to do with a received message."""

    DELIVER = enum.auto()
    """Deliver it."""
    DROP = enum.auto()
    """Drop it: it is a repetition, or it is late and its gap was signalled before."""
    GAP = enum.auto()
    """Signal a gap, then deliver it: messages before it are missing."""
    LATE = enum.auto()
    """Drop it and signal a gap: it precedes all received messages of its publisher, and it was
    never delivered."""


_DELIVER, _DROP, _GAP, _LATE = Verdict.DELIVER, Verdict.DROP, Verdict.GAP, Verdict.LATE


class SequenceTracker(msgspec.Struct, eq=False):
    """The messages that one channel has received from each publisher.

    A message that is not newer than the last received message of its publisher is a repetition or
    late, and is dropped.

    Messages before it are missing if its previous counter is neither 0 (unknown) nor the last
    received counter. This is a gap, except where an earlier gap covers the missing messages. A gap
    covers them if it was signalled after the last received message of this publisher, and after
    all the missing messages were published. For the first message of a publisher, a message is
    missing if the message before it was published after the subscription began.

    All times are values of `time.monotonic`, in seconds.

    Attributes:
        budget: the number of publishers to remember.
        complete_since: every message published after this time was received or is covered by a
            gap, for all publishers. It is infinite until the server acknowledges the subscription.
            Then it is the time of the acknowledgement or of the last gap. It moves forward when
            publishers are forgotten.
    """

    budget: PublisherBudget
    complete_since: float = math.inf
    _gap_at: float = -math.inf
    # The last publisher is kept apart from the others, because most channels have only one
    # publisher and then need no dict. `_last` is its last received counter: 0 for none, negative
    # if a gap was signalled since.
    _publisher: bytes = b""
    _last: int = 0
    # Publisher -> last received counter, in two generations. A publisher moves to the younger
    # generation when it publishes. When the younger one is full, the older one is dropped and the
    # younger one takes its place.
    _others: dict[bytes, int] | None = None
    _older: dict[bytes, int] | None = None
    _older_at: float = -math.inf
    # Publisher -> its first received counter, if messages before that one exist.
    _first: dict[bytes, int] | None = None

    def observe(
        self,
        publisher: bytes,
        counter: int,
        previous: int,
        age_us: int | None = None,
        arrived_at: float = math.inf,
    ) -> Verdict:
        """Record a message and return what to do with it.

        Args:
            publisher, counter, previous, age_us: from the envelope.
            arrived_at: the time at which the message, or its batch, was received.
        """
        if publisher != self._publisher:
            self._switch_to(publisher, arrived_at)
        last = self._last
        if last == previous and counter > last:  # True for nearly every message.
            self._last = counter
            return _DELIVER
        # The time at which the previous message was published. For another process it is an upper
        # bound, because the travel time of the message is unknown. Without an age it is NaN: every
        # comparison with NaN is false.
        previous_at = math.nan
        if age_us is not None:
            previous_at = (published_at(publisher, counter) or arrived_at) - age_us / 1e6
        first = self._first
        if not last:
            if first is None:
                first = self._first = {}
            first[publisher] = self._last = counter
            return _GAP if previous_at > self.complete_since else _DELIVER
        if counter <= abs(last):
            if first is not None and counter < first.get(publisher, 0):
                first[publisher] = counter
                return _LATE
            return _DROP
        self._last = counter
        if not previous or previous == -last or (last < 0 and previous_at <= self._gap_at):
            return _DELIVER
        return _GAP

    def has_received(self, publisher: bytes, counter: int) -> bool:
        """Whether this message of a publisher, or a later one, was received."""
        if publisher == self._publisher:
            return counter <= abs(self._last)
        for seen in (self._others, self._older):
            if seen and publisher in seen:
                return counter <= abs(seen[publisher])
        return False

    def learn(self, publisher: bytes, counter: int, now: float) -> None:
        """Record a message that the channel got from its history, or that precedes the history.

        Without this, the next message of the publisher would be its first one here, and might look
        as if messages before it were missing.
        """
        if not self.has_received(publisher, counter):
            if publisher != self._publisher:
                self._switch_to(publisher, now)
            self._last = counter

    def _switch_to(self, publisher: bytes, now: float) -> None:
        """Make another publisher the last one."""
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
        if len(others) >= self.budget.share // 2:
            self._forget_older(others, now)

    def _forget_older(self, others: dict[bytes, int], now: float) -> None:
        if self._older:
            # Publishers that published after `_older_at` are still remembered.
            self.complete_since = max(self.complete_since, self._older_at)
        self._older, self._older_at, self._others = others, now, None
        if self._first:
            kept = {*others, self._publisher}
            self._first = {name: n for name, n in self._first.items() if name in kept}

    def acknowledged(self, now: float) -> None:
        """Record that the server has acknowledged the subscription."""
        if self.complete_since == math.inf:
            self.complete_since = now

    def gap_signalled(self, now: float) -> None:
        """Record a gap of a lost connection. It covers all messages published until `now`."""
        self._gap_at = now
        self._last = -abs(self._last)
        for seen in (self._others, self._older):
            if seen:
                seen.update((publisher, -abs(last)) for publisher, last in seen.items())
        if self.complete_since != math.inf:
            self.complete_since = max(self.complete_since, now)
