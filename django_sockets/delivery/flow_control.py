"""A bounded queue between the hub and one consumer, which knows a slow consumer from a burst.

The hub fills it without waiting. A backlog that becomes full says so; the hub then gives the event
loop a turn (`Congestion.relieve`), so that a batch of a thousand messages read at once fills no
queue of a healthy consumer. A consumer that makes no use of that time is slow: its backlog
refuses items when it is full, until it has been emptied once; what that means is its owner's
business.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["STUCK_SECONDS", "Backlog", "Congestion"]

STUCK_SECONDS = 0.2
"""A consumer of a full backlog that is busy with one item for so long is slow."""
STRAIN_SECONDS = 1.0
"""So is one for which the hub waited so long in all since its backlog was last empty."""
RETRY_AFTER_SECONDS = 60.0
"""One that was slow lately is waited for a moment only, or it would slow down its neighbours anew
each time that it has caught up."""
RETRY_STUCK_SECONDS = 0.02


_NOTHING: deque[tuple[Any, int]] = deque(maxlen=0)
"""In place of a queue where nothing ever waited: an empty one takes 760 bytes, for each socket."""


class Congestion:
    """The full backlogs of one hub, and the waiting for them.

    Attributes:
        full: those backlogs; to be looked at only.
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
        """Return when every backlog has room again or belongs to a slow consumer."""
        loop = asyncio.get_running_loop()
        while self.full:
            self._changed.clear()
            now = loop.time()
            wait = loop.create_task(self._changed.wait())
            try:
                await asyncio.wait([wait], timeout=min(box.allowance(now) for box in self.full))
            finally:
                wait.cancel()
            now = loop.time()
            for backlog in list(self.full):
                backlog.judge(now)


class Backlog:
    """A bounded FIFO with one consumer, on one event loop.

    Args:
        max_items: items that may wait.
        max_bytes: bytes that may wait; an empty backlog takes one item of any size.
        congestion: where a full backlog announces itself.

    Attributes:
        slow: the consumer was given time and did not use it; `put` refuses until it caught up.
    """

    __slots__ = (
        "_busy_since",
        "_bytes",
        "_congestion",
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
        self._items = _NOTHING
        self._bytes = 0
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._congestion = congestion
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        # Nobody has asked for an item yet: as good as busy.
        self._busy_since: float | None = self._loop.time()
        self._full_since: float | None = None
        self._strain_seconds = 0.0
        self._retry_after = 0.0
        self.slow = False

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        return bool(self._items) and (
            len(self._items) >= self._max_items or self._bytes >= self._max_bytes
        )

    def put(self, item: Any, size_bytes: int, *, force: bool = False) -> bool:
        """Append an item; False if the backlog is full and its consumer slow, unless forced."""
        if self.slow and self.full and not force:
            return False
        if self._items is _NOTHING:
            self._items = deque()
        self._items.append((item, size_bytes))
        self._bytes += size_bytes
        self.wake()
        if self._full_since is None and not self.slow and self.full:
            self._full_since = self._loop.time()
            self._congestion.add(self)
        return True

    def take(self) -> Any:
        """Remove and return the first item; the consumer is busy with it until it asks again."""
        item, size_bytes = self._items.popleft()
        self._bytes -= size_bytes
        if self._full_since is not None and not self.full:
            self._relieved(self._loop.time())
        self.begin()
        if not self._items:
            self.slow = False
            self._strain_seconds = 0.0
        return item

    def evict(self, may_go: Callable[[Any], bool]) -> Any:
        """Remove and return the oldest item that may go; None if there is none."""
        for index, (item, size_bytes) in enumerate(self._items):
            if may_go(item):
                del self._items[index]
                self._bytes -= size_bytes
                return item
        return None

    def begin(self) -> None:
        """The consumer is busy with an item from now on."""
        self._busy_since = self._loop.time()

    def rest(self) -> None:
        """The consumer has nothing to do."""
        self._busy_since = None

    async def wait(self) -> None:
        """Return when there is an item, or after `wake`; the consumer is idle meanwhile."""
        self.rest()
        if not self._items:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def wake(self) -> None:
        """End the consumer's `wait`."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def allowance(self, now: float) -> float:
        """Seconds that the hub may wait for this backlog before it looks again."""
        return max(0.0, self._patience(now) - self._busy_seconds(now))

    def _patience(self, now: float) -> float:
        return RETRY_STUCK_SECONDS if now < self._retry_after else STUCK_SECONDS

    def judge(self, now: float) -> None:
        """Give the consumer of a full backlog up as slow, if it is."""
        waited = 0.0 if self._full_since is None else now - self._full_since
        strain = self._strain_seconds + waited
        if now < self._retry_after:
            strain += STRAIN_SECONDS - RETRY_STUCK_SECONDS
        if self._busy_seconds(now) >= self._patience(now) or (
            self._busy_since is not None and strain >= STRAIN_SECONDS
        ):
            self._relieved(now)
            self._give_up(now)

    def _relieved(self, now: float) -> None:
        """The hub waits for this backlog no longer; note how long it did."""
        if self._full_since is not None and self._busy_since is not None:
            self._strain_seconds += now - self._full_since
            if self._strain_seconds >= STRAIN_SECONDS:
                self._give_up(now)
        self._full_since = None
        self._congestion.discard(self)

    def _give_up(self, now: float) -> None:
        self.slow = True
        self._retry_after = now + RETRY_AFTER_SECONDS

    def _busy_seconds(self, now: float) -> float:
        return 0.0 if self._busy_since is None else now - self._busy_since

    @property
    def stuck(self) -> bool:
        """The consumer has been busy with one item for `STUCK_SECONDS`."""
        return self._busy_seconds(self._loop.time()) >= STUCK_SECONDS

    def clear(self) -> list[Any]:
        """Remove and return everything."""
        left = [item for item, _ in self._items]
        self._items = _NOTHING
        self._bytes = 0
        self._full_since = None
        self._congestion.discard(self)
        return left
