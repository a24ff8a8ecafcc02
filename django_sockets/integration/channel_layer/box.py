"""The messages of one channel that wait for `receive`, and the gaps between them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

from ...broker import QueueEntry
from .names import owner_of
from .serializer import Packed

__all__ = ["EXPIRED", "FULL", "Box", "GapEvent", "Item", "new_item"]

FULL = "overflow"
"""Reason of a `broker.gap`: the channel was at its capacity."""
EXPIRED = "expired"
"""Reason of a `broker.gap`: messages were older than `expiry` when they were received."""


class GapEvent:
    """A gap in the messages of one channel; `message` is what a consumer receives."""

    __slots__ = ("channels", "groups", "reason")

    def __init__(self, reason: str, groups: Iterable[str], channels: Iterable[str]) -> None:
        self.reason = reason
        self.groups = dict.fromkeys(groups)
        self.channels = dict.fromkeys(channels)

    def merge(self, other: GapEvent) -> bool:
        """Take the groups and channels of another gap with the same reason."""
        if self.reason != other.reason:
            return False
        self.groups.update(other.groups)
        self.channels.update(other.channels)
        return True

    def message(self) -> dict[str, Any]:
        """A new object for one consumer."""
        return {
            "type": "broker.gap",
            "groups": list(self.groups),
            "channels": list(self.channels),
            "reason": self.reason,
        }


class Item(NamedTuple):
    """A message or a gap in a box.

    Attributes:
        expires: the time of the event loop at which it is dropped.
        content: bytes that are not encrypted, or an object with a method `message`.
        number: its position among the items of all boxes.
        entry: the entry of the queue that it was taken from.
    """

    expires: float
    number: int
    content: bytes | Packed | GapEvent
    entry: QueueEntry | None = None


new_item = partial(tuple.__new__, Item)
"""Makes an item of a tuple; twice as fast as the class."""


class Box:
    """The messages of one channel.

    Attributes:
        reserved: messages of senders in this process that are under way.
        one_owner: it is process-local, and not the part up to "!" of others.
        missed: messages were dropped for capacity since the last accepted one; the gap that tells.
        waiters: one future for each `receive` that waits, or that was woken and has not run yet.
        used_at: the time of the event loop at which a `receive` last began or ended.
        cancelled: the last `receive` was cancelled.
        unread: a message expired since the last `receive`.
    """

    __slots__ = (
        "cancelled", "capacity", "items", "missed", "name", "one_owner", "reserved", "unread",
        "used_at", "waiters",
    )  # fmt: skip

    def __init__(self, name: str, capacity: int, now: float) -> None:
        self.name = name
        self.one_owner = owner_of(name) is not None and not name.endswith("!")
        self.capacity = capacity
        self.items: deque[Item] = deque()
        self.reserved = 0
        self.missed: GapEvent | None = None
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.used_at = now
        self.cancelled = False
        self.unread = False

    @property
    def pending(self) -> int:
        """The number of `receive` calls that wait and were not woken."""
        return sum(not waiter.done() for waiter in self.waiters)

    def has_room(self, count: int = 1) -> bool:
        """Whether `count` more messages are within the capacity. Gaps take no room."""
        if len(self.items) + count <= self.capacity:
            return True
        gaps = sum(isinstance(item.content, GapEvent) for item in self.items)
        return len(self.items) - gaps + count <= self.capacity

    def wake(self) -> bool:
        """Wake the `receive` that has waited longest. False if none waits."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
                return True
        return False
