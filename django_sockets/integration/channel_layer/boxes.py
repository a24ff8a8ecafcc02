"""The messages that wait for the `receive` calls of one event loop.

A box holds the messages of one channel. Only the event loop of the boxes uses them, except for
`reserve` and `release`: a sender on another thread of the process reserves room for its message, so
that a full channel raises ChannelFull at the sender.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from collections.abc import Iterable, Iterator

from ...broker import QueueEntry
from .box import EXPIRED, FULL, Box, GapEvent, Item, new_item
from .counters import LayerCounters
from .names import base_of
from .options import LayerOptions
from .serializer import Packed

__all__ = ["Boxes"]


class Boxes:
    """The boxes of one event loop."""

    def __init__(
        self, options: LayerOptions, counters: LayerCounters, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._options = options
        self._counters = counters
        self._loop = loop
        self._boxes: dict[str, Box] = {}
        self._prefixes = 0  # The number of `receive` calls for a part up to "!".
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._error: Exception | None = None

    def __len__(self) -> int:
        return len(self._boxes)

    def __iter__(self) -> Iterator[Box]:
        return iter(list(self._boxes.values()))

    def get(self, name: str) -> Box:
        """The box of a channel. It is made if there is none."""
        box = self._boxes.get(name)
        if box is None:
            new = Box(name, self._options.capacity_of(name), self._loop.time())
            box = self._boxes.setdefault(name, new)  # Another thread may have come first.
        return box

    def known(self, name: str) -> Box | None:
        """The box of a channel, or None."""
        return self._boxes.get(name)

    def forget(self, box: Box) -> None:
        """Remove a box."""
        self._boxes.pop(box.name, None)

    # Putting messages in

    def reserve(self, name: str) -> bool:
        """Reserve room for one message, on any thread. False if the channel is full."""
        box = self.get(name)
        with self._lock:
            if not box.has_room(box.reserved + 1):
                return False
            box.reserved += 1
        return True

    def release(self, name: str) -> None:
        """End a reservation, on any thread: the message has arrived, or was not sent."""
        box = self._boxes.get(name)
        if box is not None:
            with self._lock:
                box.reserved = max(0, box.reserved - 1)

    def put(self, names: Iterable[str], content: bytes | Packed, group: str | None = None) -> None:
        """Put one message into several channels. Those that are full drop it.

        Args:
            group: the group to which it was sent, or None.
        """
        boxes = self._boxes
        # The channels share the item.
        expires = self._loop.time() + self._options.expiry_seconds
        item = new_item((expires, next(self._numbers), content, None))
        delivered = 0
        for name in names:
            box = boxes.get(name) or self.get(name)
            if box.missed is not None or len(box.items) >= box.capacity:
                if not box.has_room():
                    self._drop(box, group)
                    continue
                if box.missed is not None:
                    missed, box.missed = box.missed, None
                    self.put_gap(name, missed)
            box.items.append(item)
            delivered += 1
            # As in `Box.wake`, without a call for each channel.
            for waiter in box.waiters:
                if not waiter.done():
                    waiter.set_result(None)
                    break
            if self._prefixes:
                self._wake_prefix(name)
        self._counters.delivered += delivered

    def _drop(self, box: Box, group: str | None) -> None:
        self._counters.dropped_full += 1
        if self._options.gap_events:
            gap = GapEvent(FULL, [group] if group else [], [] if group else [box.name])
            if box.missed is None or not box.missed.merge(gap):
                box.missed = gap

    def _wake_prefix(self, name: str) -> None:
        prefix = self._boxes.get(base_of(name))
        if prefix is not None:
            prefix.wake()

    def put_gap(self, name: str, gap: GapEvent) -> None:
        """Put a gap into a channel, if consumers get gaps. It needs no room."""
        if not self._options.gap_events:
            return
        box = self.get(name)
        last = box.items[-1].content if box.items else None
        if not (isinstance(last, GapEvent) and last.merge(gap)):
            box.items.append(Item(math.inf, next(self._numbers), gap))
        if not box.wake():
            self._wake_prefix(name)

    def put_entry(self, name: str, content: bytes | Packed, entry: QueueEntry) -> None:
        """Put a message from a queue into a channel, for a `receive` that waits."""
        box = self.get(name)
        expires = self._loop.time() + self._options.expiry_seconds
        box.items.append(Item(expires, next(self._numbers), content, entry))
        if not box.wake():
            self._wake_prefix(name)

    def put_back(self, name: str, item: Item) -> None:
        """Put the item that `receive` has returned back to the front."""
        box = self.get(name)
        box.items.appendleft(item)
        box.wake()

    # Taking messages out

    async def receive(self, name: str) -> Item:
        """Wait for the next item of a channel, or of all channels with a prefix that ends in "!".

        A cancelled call leaves the item in its box.

        Raises:
            Exception: the error of `fail`.
        """
        if not name.endswith("!"):
            return await self.receive_from(self.get(name))
        self._prefixes += 1
        try:
            return await self.receive_from(self.get(name))
        finally:
            self._prefixes -= 1

    async def receive_from(self, box: Box) -> Item:
        """Wait for the next item of a box. See `receive`."""
        box.cancelled = box.unread = False
        while True:
            if self._error is not None:
                raise self._error
            # Nearly every call finds a process-local channel empty.
            if box.items or box.missed is not None or not box.one_owner:
                item = self.take(box)
                if item is not None:
                    return item
            # The sweep may have removed the box.
            box = self._boxes.setdefault(box.name, box)
            waiter: asyncio.Future[None] = self._loop.create_future()
            box.waiters.append(waiter)
            try:
                await waiter
            except BaseException:
                box.cancelled = True
                box.used_at = self._loop.time()
                if waiter.done() and not waiter.cancelled():
                    box.wake()  # The next one gets the item.
                raise
            finally:
                box.waiters.remove(waiter)

    def take(self, box: Box) -> Item | None:
        """The next item of a box without waiting, or None."""
        now = box.used_at = self._loop.time()
        if box.items:
            if box.items[0].expires > now:
                return box.items.popleft()
        elif box.name.endswith("!"):
            return self._take_from_all(box.name)
        return self._take(box)

    def _take(self, box: Box) -> Item | None:
        now = self._loop.time()
        expired = self.drop_expired(box, now)
        if expired is not None:
            return Item(math.inf, 0, expired)
        if box.items:
            return box.items.popleft()
        if box.missed is not None:
            missed, box.missed = box.missed, None
            return Item(math.inf, 0, missed)
        return None

    def _take_from_all(self, prefix: str) -> Item | None:
        full = [b for name, b in self._boxes.items() if name.startswith(prefix) and b.items]
        if not full:
            return None
        return self._take(min(full, key=lambda box: box.items[0].number))

    def drop_expired(self, box: Box, now: float) -> GapEvent | None:
        """Drop the messages at the front that are too old.

        Returns:
            The gap in their place, if consumers get gaps.
        """
        dropped = 0
        while box.items and box.items[0].expires <= now:
            box.items.popleft()
            dropped += 1
        if not dropped:
            return None
        self._counters.dropped_expired += dropped
        box.unread = True
        return GapEvent(EXPIRED, [], [box.name]) if self._options.gap_events else None

    def pending(self, base: str) -> int:
        """The `receive` calls that wait for a channel, or for any with the prefix `base`."""
        if not base.endswith("!"):
            box = self._boxes.get(base)
            return 0 if box is None else box.pending
        return sum(box.pending for name, box in self._boxes.items() if name.startswith(base))

    def surplus(self, name: str) -> list[Item]:
        """Take out the items from queues for which no `receive` waits, the last one first."""
        box = self._boxes.get(name)
        found: list[Item] = []
        if box is not None:
            while len(box.items) > len(box.waiters) and box.items[-1].entry is not None:
                found.append(box.items.pop())
        return found

    # Gaps and the end

    def reset_reservations(self) -> None:
        """Messages of this process may have been lost: forget the room that they had."""
        with self._lock:
            for box in self:
                box.reserved = 0

    def clear(self) -> None:
        """Drop all messages. Calls of `receive` go on waiting."""
        for box in self:
            box.items.clear()
            box.missed = None
            if not box.waiters:
                self.forget(box)
        self.reset_reservations()

    def fail(self, error: Exception) -> None:
        """End all calls of `receive` with an error, also later ones."""
        self._error = error
        for box in self:
            while box.wake():
                pass
