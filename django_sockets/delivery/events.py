"""Messages and gaps for subscribers, and a queue of them for one reader."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from ..history import Recovery
from .flow_control import Backlog, Congestion
from .message import Delivery
from .presence_frames import change_frames

__all__ = [
    "HISTORY",
    "LATE",
    "MISSED",
    "OVERFLOW",
    "VERSION",
    "DroppedChannels",
    "Event",
    "EventQueue",
    "Events",
    "Gap",
    "Members",
    "Message",
    "Presence",
]

MISSED = "missed"
"""Gap reason: messages of a publisher are missing before its next message."""
LATE = "late"
"""Gap reason: a message arrived after a newer one of its publisher and was dropped."""
VERSION = "version"
"""Gap reason: a message has a newer format than this process can read."""
HISTORY = "history"
"""Gap reason: the messages since the last known position are not in the history any more."""
OVERFLOW = "overflow"
"""Gap reason: the subscriber was too slow, and messages for it were dropped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """A message as it was published.

    Attributes:
        channel: the channel of the message.
        payload: the published bytes. Data that was broadcast is JSON text in UTF-8.
        position: the place behind the message in the history of its channel, as opaque text for
            `since`; None for a message that was not kept. It does not count for equality.
        traceparent: the context of its delivery (W3C Trace Context), if this process makes traces
            and the message belongs to one. It does not count for equality.
    """

    channel: str
    payload: bytes
    position: str | None = dataclasses.field(default=None, compare=False)
    traceparent: str | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap:
    """Messages may be missing at this point of the stream: fetch the present state again.

    Attributes:
        channels: 1..n subscribed channels.
        reason: "missed", "late", "version", "overflow", "history" (the messages since the last
            known position are not kept any more), or the text of the broker for a lost connection.
    """

    channels: tuple[str, ...]
    reason: str


Members: TypeAlias = Mapping[str, list[Any]]
"""Key of a member -> the info of each of its connections that are tracked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Presence:
    """Members of a channel have joined, left, or changed at this point of the stream.

    A key is in at most one of the three mappings. Each join and each leave comes once, for the
    first and the last connection of a key. After a gap, one event has the difference to the members
    that were known before. Do not change the mappings or infos: others get the same objects.

    Attributes:
        channel: the channel.
        joined: the members that were not present before, with their infos.
        left: the members that are not present any more, with their last infos.
        updated: the members that stay and whose infos have changed, with the new ones.
    """

    channel: str
    joined: Members = dataclasses.field(default_factory=dict)
    left: Members = dataclasses.field(default_factory=dict)
    updated: Members = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def client_frames(self) -> list[Delivery]:
        """The frames for clients of the protocol. They are made once, and shared."""
        return change_frames(self.channel, self.joined, self.left, self.updated)


Event: TypeAlias = Message | Gap | Presence


class DroppedChannels:
    """The channels on which messages were dropped for a slow consumer and no gap was signalled yet.

    It is true while there are such channels.
    """

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self._names)

    def add(self, channels: Iterable[str]) -> None:
        """Record that messages on these channels were dropped."""
        self._names.update(dict.fromkeys(channels))

    def take_gap(self) -> Gap:
        """The gap of all recorded channels. It also clears the record."""
        gap = Gap(channels=tuple(self._names), reason=OVERFLOW)
        self._names.clear()
        return gap


class EventQueue:
    """A subscriber with a bounded queue and one reader.

    If the reader is too slow, new events are dropped. A `Gap(reason="overflow")` takes their place.

    Args:
        max_items, max_bytes, congestion: see `Backlog`.
        count_gap: called with the reason of each gap that the queue makes.
    """

    def __init__(
        self,
        max_items: int,
        max_bytes: int,
        congestion: Congestion,
        count_gap: Callable[[str], None],
    ) -> None:
        self._count_gap = count_gap
        self._backlog = Backlog(max_items, max_bytes, congestion)
        self._dropped = DroppedChannels()
        self._closed = False

    def on_delivery(self, delivery: Delivery) -> None:
        """See `Subscriber`."""
        self._put(delivery, len(delivery.payload), [delivery.channel])

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        """See `Subscriber`."""
        self._put(Gap(channels=tuple(channels), reason=reason), 0, channels)

    def on_presence(self, change: Presence) -> None:
        """See `PresenceSubscriber`."""
        self._put(change, 0, [change.channel])

    def _put(
        self, event: Delivery | Gap | Presence, size_bytes: int, channels: Sequence[str]
    ) -> None:
        if self._dropped and not self._backlog.full:
            self._backlog.put(self._take_gap(), 0)
        if not self._backlog.put(event, size_bytes):
            self._dropped.add(channels)

    def _take_gap(self) -> Gap:
        self._count_gap(OVERFLOW)
        return self._dropped.take_gap()

    @property
    def unsent(self) -> Backlog:
        """The queued events. For any thread."""
        return self._backlog

    @property
    def ready(self) -> bool:
        """True if `next` returns an event without waiting."""
        return bool(self._backlog) or bool(self._dropped)

    async def wait(self, seconds: float) -> None:
        """Wait until `next` returns at once, at most `seconds`, which may be infinite.

        It takes no task, unlike a deadline around `next`.
        """
        if self.ready or self._closed:
            return
        timer = None
        if seconds < math.inf:
            timer = asyncio.get_running_loop().call_later(seconds, self._backlog.wake)
        try:
            await self._backlog.wait()
        finally:
            if timer is not None:
                timer.cancel()

    @property
    def closed(self) -> bool:
        """`close` was called."""
        return self._closed

    async def next(self) -> Delivery | Gap | Presence | None:
        """The next event; None if the queue is closed and empty. Cancelling loses no event."""
        backlog = self._backlog
        if not backlog and not self._dropped and not self._closed:
            await backlog.wait()
        if backlog:
            event: Delivery | Gap | Presence = backlog.take()
            return event
        return self._take_gap() if self._dropped else None

    def drain(self) -> list[Delivery | Gap | Presence]:
        """Remove and return all queued events without waiting."""
        left: list[Delivery | Gap | Presence] = self._backlog.clear()
        if self._dropped:
            left.append(self._take_gap())
        return left

    def close(self) -> None:
        """Let the reader end after the queued events."""
        self._closed = True
        self._backlog.wake()


class Events(EventQueue):
    """An async iterator of `Message`, `Gap` and `Presence`, for one `hub.subscribe`.

    Attributes:
        recoveries: channel -> the result of its subscription.
    """

    recoveries: Mapping[str, Recovery] = MappingProxyType({})

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Event:
        event = await self.next()
        if event is None:
            raise StopAsyncIteration
        if not isinstance(event, Delivery):
            return event
        position = None if event.place is None else event.position
        return Message(
            channel=event.channel,
            payload=event.payload,
            position=position,
            traceparent=event.traceparent,
        )
