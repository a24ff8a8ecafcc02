"""The queues of an in-process bus. The bus holds its lock during each call."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from ..broker import QueueEntry
from .memory_member import MemoryMember

__all__ = ["MemoryQueueCalls", "MemoryQueues"]

SWEEP_MS = 1000
"""Minimum interval between two removals of queues and marks that have expired."""


class MemoryQueues:
    """The queues of one bus.

    Args:
        ring: publishes a doorbell on a channel.
    """

    def __init__(self, ring: Callable[[str, bytes], None]) -> None:
        self._ring = ring
        self._queues: dict[str, deque[QueueEntry]] = {}
        self._marks: dict[tuple[str, bytes], int] = {}
        self._sweep_at = 0

    def push(
        self,
        queue: str,
        payload: bytes,
        capacity: int,
        expiry_ms: int,
        doorbell: bytes,
        once: bytes,
    ) -> bool:
        """See `SupportsQueue.queue_push`."""
        now = _now_ms()
        self._sweep(now)
        if once:
            if self._marks.get((queue, once), 0) > now:
                return True
            self._marks[queue, once] = now + expiry_ms
        entries = self._queues.setdefault(queue, deque())
        while entries and entries[0].expires_ms <= now:
            entries.popleft()
        if len(entries) >= capacity:
            return False
        entries.append(QueueEntry(payload, now + expiry_ms))
        if len(entries) == 1:
            self._ring(queue, doorbell)
        return True

    def pop(self, queue: str) -> tuple[QueueEntry | None, int]:
        """See `SupportsQueue.queue_pop`."""
        now = _now_ms()
        expired = 0
        entries = self._queues.get(queue)
        while entries:
            entry = entries.popleft()
            if entry.expires_ms > now:
                return entry, expired
            expired += 1
        self._queues.pop(queue, None)
        return None, expired

    def give_back(self, queue: str, entry: QueueEntry, doorbell: bytes) -> None:
        """See `SupportsQueue.queue_return`."""
        if entry.expires_ms <= _now_ms():
            return
        entries = self._queues.setdefault(queue, deque())
        entries.appendleft(entry)
        if len(entries) == 1:
            self._ring(queue, doorbell)

    def clear(self, prefix: str) -> None:
        """See `SupportsQueue.queue_clear`."""
        for queue in [name for name in self._queues if name.startswith(prefix)]:
            del self._queues[queue]
        for mark in [mark for mark in self._marks if mark[0].startswith(prefix)]:
            del self._marks[mark]

    def _sweep(self, now: int) -> None:
        """Remove queues that nobody reads, and marks, after they have expired."""
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_MS
        for name, entries in list(self._queues.items()):
            if not entries or entries[-1].expires_ms <= now:
                del self._queues[name]
        for mark, expires in list(self._marks.items()):
            if expires <= now:
                del self._marks[mark]


class MemoryQueueCalls(MemoryMember):
    """The methods of `SupportsQueue`."""

    async def queue_push(
        self,
        queue: str,
        payload: bytes,
        *,
        capacity: int,
        expiry_ms: int,
        doorbell: bytes,
        once: bytes = b"",
    ) -> bool:
        """See `SupportsQueue.queue_push`."""
        with self._open_bus() as bus:
            return bus.queues.push(queue, payload, capacity, expiry_ms, doorbell, once)

    async def queue_pop(self, queue: str) -> tuple[QueueEntry | None, int]:
        """See `SupportsQueue.queue_pop`."""
        with self._open_bus() as bus:
            return bus.queues.pop(queue)

    async def queue_return(self, queue: str, entry: QueueEntry, *, doorbell: bytes) -> None:
        """See `SupportsQueue.queue_return`."""
        with self._open_bus() as bus:
            bus.queues.give_back(queue, entry, doorbell)

    async def queue_clear(self, prefix: str) -> None:
        """See `SupportsQueue.queue_clear`."""
        with self._open_bus() as bus:
            bus.queues.clear(prefix)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
