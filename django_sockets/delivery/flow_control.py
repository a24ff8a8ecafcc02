"""Flow control between the hub and its consumers: bounded backlogs that detect slow consumers.

The hub appends to a backlog without waiting. A backlog that becomes full registers itself at the
`Congestion` of the hub. The hub then waits (`Congestion.relieve`) until its consumer has taken
items, so a burst of messages alone never makes a consumer slow.

A consumer that does not use this time is slow. Its backlog refuses items while it is full, until
it has been empty once. The owner of the backlog decides what to do with refused items.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from ..observer import ConsumerSlow, seam

__all__ = ["STUCK_SECONDS", "Backlog", "Congestion"]

STUCK_SECONDS = 0.2
"""A consumer with a full backlog is slow if one item takes it this long."""
STRAIN_SECONDS = 1.0
"""A consumer is also slow if the hub has waited this long for it, in total, since its backlog was
last empty."""
RETRY_AFTER_SECONDS = 60.0
"""For this time after a consumer was slow, the hub waits at most `RETRY_STUCK_SECONDS` for it.
Otherwise it would slow down the other consumers again each time that it has caught up."""
RETRY_STUCK_SECONDS = 0.02


_NOTHING: deque[tuple[Any, int, int]] = deque(maxlen=0)
"""Shared by all backlogs that never had an item: an empty deque takes 760 bytes for each socket."""


class Congestion:
    """The full backlogs of one hub.

    Attributes:
        full: the backlogs for which the hub has to wait. Read only.
    """

    def __init__(self) -> None:
        self.full: set[Backlog] = set()
        self._changed = asyncio.Event()

    def add(self, backlog: Backlog) -> None:
        self.full.add(backlog)

    def discard(self, backlog: Backlog) -> None:
        self.full.discard(backlog)
        if not self.full:
            self._changed.set()

    async def relieve(self) -> None:
        """Wait until every backlog has room or belongs to a slow consumer."""
        loop = asyncio.get_running_loop()
        while self.full:
            self._changed.clear()
            now = loop.time()
            wait = loop.create_task(self._changed.wait())
            try:
                seconds = min(backlog.allowance(now) for backlog in self.full)
                await asyncio.wait([wait], timeout=seconds)
            finally:
                wait.cancel()
            now = loop.time()
            for backlog in list(self.full):
                backlog.judge(now)


class Backlog:
    """A bounded FIFO with one consumer, on one event loop.

    An entry is one item, or several that are queued and taken together. `len()` is the number of
    entries; `max_items` bounds the items.

    Args:
        max_items: the most queued items.
        max_bytes: the most queued bytes. An empty backlog takes one item of any size.
        congestion: the place where a full backlog registers itself.

    Attributes:
        slow: the consumer is slow; `put` refuses items until the backlog has been empty.
    """

    __slots__ = (
        "_busy_since",
        "_bytes",
        "_congestion",
        "_entries",
        "_full_since",
        "_items",
        "_loop",
        "_max_bytes",
        "_max_items",
        "_retry_after",
        "_strain_seconds",
        "_waiter",
        "slow",
    )

    def __init__(self, max_items: int, max_bytes: int, congestion: Congestion) -> None:
        self._entries = _NOTHING
        self._items = 0
        self._bytes = 0
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._congestion = congestion
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        # A consumer that has not yet asked for an item counts as busy.
        self._busy_since: float | None = self._loop.time()
        self._full_since: float | None = None
        self._strain_seconds = 0.0
        self._retry_after = 0.0
        self.slow = False

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def items(self) -> int:
        """The number of queued items. For any thread."""
        return self._items

    @property
    def size_bytes(self) -> int:
        """The size of the queued items. For any thread."""
        return self._bytes

    @property
    def full(self) -> bool:
        """The number of items or bytes has reached its limit."""
        return bool(self._entries) and (
            self._items >= self._max_items or self._bytes >= self._max_bytes
        )

    def fits(self, size_bytes: int, items: int) -> bool:
        """Whether an entry can be appended without going over a limit."""
        return (
            self._items + items <= self._max_items and self._bytes + size_bytes <= self._max_bytes
        )

    def put(self, entry: Any, size_bytes: int, *, items: int = 1, force: bool = False) -> bool:
        """Append an entry. Without `force`, return False if the backlog is full and slow."""
        if self.slow and self.full and not force:
            return False
        if self._entries is _NOTHING:
            self._entries = deque()
        self._entries.append((entry, size_bytes, items))
        self._items += items
        self._bytes += size_bytes
        self.wake()
        if self._full_since is None and not self.slow and self.full:
            self._full_since = self._loop.time()
            self._congestion.add(self)
        return True

    def take(self) -> Any:
        """Remove and return the first entry. The consumer is busy with it until its next call."""
        entry, size_bytes, items = self._entries.popleft()
        self._items -= items
        self._bytes -= size_bytes
        if self._full_since is not None and not self.full:
            self._relieved(self._loop.time())
        self.begin()
        if not self._entries:
            self.slow = False
            self._strain_seconds = 0.0
        return entry

    def peek(self) -> Any:
        """The first entry; there must be one."""
        return self._entries[0][0]

    def evict(self, split: Callable[[Any], tuple[Any, int, Any] | None]) -> Any:
        """Remove and return the oldest item that may go; None if there is none.

        Args:
            split: returns None for an entry that has to stay, else its first item, the size of the
                item, and an entry of the other items or None.
        """
        for index, (entry, size_bytes, items) in enumerate(self._entries):
            parts = split(entry)
            if parts is None:
                continue
            item, item_bytes, rest = parts
            if rest is None:
                del self._entries[index]
                item_bytes = size_bytes
            else:
                self._entries[index] = (rest, size_bytes - item_bytes, items - 1)
            self._items -= 1
            self._bytes -= item_bytes
            return item
        return None

    def begin(self) -> None:
        """Record that the consumer is busy with an item from now on."""
        self._busy_since = self._loop.time()

    def rest(self) -> None:
        """Record that the consumer has nothing to do."""
        self._busy_since = None

    async def wait(self) -> None:
        """Wait for an item or for `wake`. The consumer is idle meanwhile."""
        self.rest()
        if not self._entries:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def wake(self) -> None:
        """End the `wait` of the consumer."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def allowance(self, now: float) -> float:
        """The seconds that the hub may wait for this backlog before it calls `judge`."""
        return max(0.0, self._patience(now) - self._busy_seconds(now))

    def _patience(self, now: float) -> float:
        return RETRY_STUCK_SECONDS if now < self._retry_after else STUCK_SECONDS

    def judge(self, now: float) -> None:
        """Decide whether the consumer of this full backlog is slow."""
        waited = 0.0 if self._full_since is None else now - self._full_since
        strain = self._strain_seconds + waited
        if now < self._retry_after:
            strain += STRAIN_SECONDS - RETRY_STUCK_SECONDS
        if self._busy_seconds(now) >= self._patience(now) or (
            self._busy_since is not None and strain >= STRAIN_SECONDS
        ):
            self._relieved(now)
            self._mark_slow(now)

    def _relieved(self, now: float) -> None:
        """Record that the hub no longer waits for this backlog, and how long it waited."""
        if self._full_since is not None and self._busy_since is not None:
            self._strain_seconds += now - self._full_since
            if self._strain_seconds >= STRAIN_SECONDS:
                self._mark_slow(now)
        self._full_since = None
        self._congestion.discard(self)

    def _mark_slow(self, now: float) -> None:
        if not self.slow and (observer := seam.observer) is not None:
            observer.consumer_slow(ConsumerSlow(messages=self._items, size_bytes=self._bytes))
        self.slow = True
        self._retry_after = now + RETRY_AFTER_SECONDS

    def _busy_seconds(self, now: float) -> float:
        since = self._busy_since  # Read once: another thread may ask for `stuck`.
        return 0.0 if since is None else now - since

    @property
    def stuck(self) -> bool:
        """The consumer has been busy with one item for `STUCK_SECONDS`. For any thread."""
        return self._busy_seconds(self._loop.time()) >= STUCK_SECONDS

    def clear(self) -> list[Any]:
        """Remove and return all entries."""
        left = [entry for entry, _, _ in self._entries]
        self._entries = _NOTHING
        self._items = self._bytes = 0
        self._full_since = None
        self._congestion.discard(self)
        return left
