"""Broadcasts that wait while the hook `connect` or `gap` of one socket sends the present state.

The client gets the state first and all changes after it, for any duration of the hook. Events wait
as references, so one broadcast that waits for 1,000 sockets is in memory once.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

from .events import OVERFLOW, Gap, Presence
from .fanout import TURN_DELIVERIES
from .flow_control import Congestion
from .message import Delivery
from .send_queue import SendQueue

__all__ = [
    "HOLD_MESSAGES",
    "NOT_YET",
    "ClientEvent",
    "Hold",
    "HoldOwner",
    "HoldTimer",
    "event_bytes",
    "event_channels",
]

logger = logging.getLogger("django_sockets")

HOLD_MESSAGES = 4096
"""The most events that wait. An outbox holds fewer: a slow hook does not mean a slow client."""

ClientEvent: TypeAlias = Delivery | Gap | Presence
"""An event on its way to the client or the hooks of one socket."""

_NOTHING: deque[ClientEvent] = deque(maxlen=0)
"""Shared by all holds without an event: an empty deque takes 760 bytes."""


class HoldOwner(Protocol):
    """The delivery of one socket, as its holds know it."""

    @property
    def outbox_bytes(self) -> int:
        """Bytes of payloads that may wait; one event of any size may."""

    @property
    def outbox_messages(self) -> int:
        """`much_waits` is called while more events than this wait."""

    def overran(self, event: ClientEvent, first: bool) -> None:
        """Count this event, the oldest, which was removed; `first` for the first of a hole."""

    def much_waits(self, hold: Hold) -> None:
        """More than `outbox_messages` wait, or events were removed; called for each event more."""

    def discarded(self, count: int) -> None:
        """Count messages that are not handed on: the socket ends, or has left their channel."""

    def hold_expired(self) -> None:
        """End the hold: `connect` has not returned in time."""


class Hold:
    """The events that wait for one hook, in the order of the stream, on one event loop.

    If too many events wait, the oldest are dropped. A `Gap(reason="overflow")` takes their place.

    Attributes:
        passing: the hook has returned, and the events are being handed over. New events still queue
            behind the others. Twice as many may wait, because the client did not cause a burst that
            arrives now.
        closed: the socket has ended; events are discarded and counted.
        watched: set by the owner while it checks whether the client reads.
    """

    __slots__ = ("_bytes", "_events", "_hole", "_owner", "closed", "passing", "watched")

    def __init__(self, owner: HoldOwner) -> None:
        self._owner = owner
        self._events = _NOTHING
        self._bytes = 0
        self._hole: dict[str, None] | None = None
        self.passing = False
        self.closed = False
        self.watched = False

    def __len__(self) -> int:
        return len(self._events) + (self._hole is not None)

    @property
    def size_bytes(self) -> int:
        """The size of the events. For any thread."""
        return self._bytes

    @property
    def dropping(self) -> bool:
        """Events were dropped, and their gap was not taken yet. For any thread."""
        return self._hole is not None

    def on_delivery(self, delivery: Delivery) -> None:
        """See `Subscriber`."""
        self.put(delivery)

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        """See `Subscriber`."""
        self.put(Gap(channels=tuple(channels), reason=reason))

    def on_presence(self, change: Presence) -> None:
        """See `PresenceSubscriber`."""
        self.put(change)

    def put(self, event: ClientEvent) -> None:
        """Append an event."""
        if self.closed:
            self._owner.discarded(isinstance(event, Delivery))
            return
        if self._events is _NOTHING:
            self._events = deque()
        events = self._events
        events.append(event)
        self._bytes += event_bytes(event)
        share = 2 if self.passing else 1
        while len(events) > 1 and (
            len(events) > share * HOLD_MESSAGES or self._bytes > share * self._owner.outbox_bytes
        ):
            self._drop_oldest()
        if len(events) > self._owner.outbox_messages or self._hole is not None:
            self._owner.much_waits(self)

    def _drop_oldest(self) -> None:
        oldest = self._take()
        first = self._hole is None
        if self._hole is None:
            self._hole = {}
        self._hole.update(dict.fromkeys(event_channels(oldest)))
        self._owner.overran(oldest, first)

    def _take(self) -> ClientEvent:
        event = self._events.popleft()
        self._bytes -= event_bytes(event)
        return event

    def take(self, most: int) -> Iterator[ClientEvent]:
        """Remove and yield at most `most` events. The gap of an overflow is the first one.

        During the iteration, events may be added and the hold may be closed.
        """
        while self and most > 0:
            if self._hole is not None:
                channels, self._hole = tuple(self._hole), None
                yield Gap(channels=channels, reason=OVERFLOW)
            else:
                yield self._take()
            most -= 1

    async def hand_over(
        self,
        pass_on: Callable[[ClientEvent], None],
        send_queue: SendQueue,
        congestion: Congestion,
    ) -> None:
        """Hand over all events, with those that arrive meanwhile. Returns when none is left.

        Args:
            pass_on: puts one event into the send queue, by the overflow policy.
            send_queue: while it is full, the hold waits for its consumer as the hub does.
        """
        while self:
            for event in self.take(TURN_DELIVERIES):
                try:
                    pass_on(event)
                except Exception:
                    # As in the hub, an event that cannot be encoded must not stop the others.
                    logger.exception(
                        "a subscriber failed to take %r",
                        type(event).__name__,
                        extra={"reason": type(event).__name__},
                    )
                if send_queue.full:
                    break
            if send_queue.full:
                await congestion.relieve()
            elif self:
                await asyncio.sleep(0)

    def forget(self, channels: Iterable[str]) -> None:
        """Discard the events of channels that the socket has left."""
        gone = set(channels)
        kept: deque[ClientEvent] = deque()
        for event in self._events:
            if isinstance(event, Gap):
                left = tuple(name for name in event.channels if name not in gone)
                if left:
                    kept.append(Gap(channels=left, reason=event.reason))
            elif event.channel not in gone:
                kept.append(event)
            else:
                self._bytes -= event_bytes(event)
                self._owner.discarded(isinstance(event, Delivery))
        self._events = kept
        if self._hole is not None:
            self._hole = {name: None for name in self._hole if name not in gone} or None

    def forget_gap(self, channels: Iterable[str], reason: str) -> None:
        """Remove each channel from the first gap with this reason that names it."""
        left = set(channels)
        kept: deque[ClientEvent] = deque()
        for event in self._events:
            if left and isinstance(event, Gap) and event.reason == reason:
                names = tuple(name for name in event.channels if name not in left)
                left.difference_update(event.channels)
                if names:
                    kept.append(Gap(channels=names, reason=reason))
            else:
                kept.append(event)
        self._events = kept

    def close(self) -> None:
        """Discard all present and future events, because the socket ends."""
        self.closed = True
        events, self._events = self._events, _NOTHING
        self._bytes = 0
        self._hole = None
        self._owner.discarded(sum(isinstance(event, Delivery) for event in events))

    def expire(self) -> None:
        """Called by `HoldTimer` after the time of the hold."""
        self._owner.hold_expired()


NOT_YET: Hold = Hold.__new__(Hold)
"""A placeholder for a hold that begins with the first subscription. It never gets an event."""


class HoldTimer:
    """Expires the holds of one hub with a single timer of the event loop.

    A timer for each hold would cost a tenth of a handshake, and would stay in the heap of the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ends: dict[Hold, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, hold: Hold, seconds: float) -> None:
        """Call `hold.expire()` after that time, unless `discard` is called before."""
        if seconds == math.inf:
            return
        self._ends[hold] = ends = self._loop.time() + seconds
        if self._timer is None or ends < self._timer.when():
            self._wake_at(ends)

    def discard(self, hold: Hold) -> None:
        """Remove a hold. The timer keeps running, because the next hold can use it."""
        self._ends.pop(hold, None)

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        for hold in [hold for hold, ends in self._ends.items() if ends <= now]:
            del self._ends[hold]
            hold.expire()
        if self._ends:
            self._wake_at(min(self._ends.values()))


def event_bytes(event: ClientEvent) -> int:
    """The bytes of an event that count against `outbox_bytes`."""
    return len(event.payload) if isinstance(event, Delivery) else 0


def event_channels(event: ClientEvent) -> Sequence[str]:
    """The channels of an event."""
    return event.channels if isinstance(event, Gap) else (event.channel,)
