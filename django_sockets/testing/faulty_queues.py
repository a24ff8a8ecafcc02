"""The queues of a `FaultyBroker`: calls that the server refuses, and calls whose reply is lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..broker import QueueEntry, SupportsQueue
from ..errors import QueueError
from ..url import BrokerURL

__all__ = ["LOST_REPLY", "REFUSED", "FaultyQueues"]

T = TypeVar("T")

REFUSED = "queue refused"
"""A call fails, and the server has done nothing."""
LOST_REPLY = "queue reply lost"
"""The server has carried the call out, and the caller gets an error with `unknown`."""


class FaultyQueues:
    """The methods of `SupportsQueue`, with faults.

    A doorbell is a message to the hub, and has the faults of messages.

    Args:
        queues: the broker that has the queues.
        next_fault: returns the fault of one call: `REFUSED`, `LOST_REPLY` or "".
    """

    def __init__(
        self, url: BrokerURL, queues: SupportsQueue, next_fault: Callable[[], str]
    ) -> None:
        self._url = url
        self._queues = queues
        self._next_fault = next_fault

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
        return await self._call(
            queue,
            lambda: self._queues.queue_push(
                queue, payload, capacity=capacity, expiry_ms=expiry_ms, doorbell=doorbell, once=once
            ),
        )

    async def queue_pop(self, queue: str) -> tuple[QueueEntry | None, int]:
        """See `SupportsQueue.queue_pop`."""
        return await self._call(queue, lambda: self._queues.queue_pop(queue))

    async def queue_return(self, queue: str, entry: QueueEntry, *, doorbell: bytes) -> None:
        """See `SupportsQueue.queue_return`."""
        await self._call(queue, lambda: self._queues.queue_return(queue, entry, doorbell=doorbell))

    async def queue_clear(self, prefix: str) -> None:
        """See `SupportsQueue.queue_clear`."""
        await self._call(prefix, lambda: self._queues.queue_clear(prefix))

    async def _call(self, queue: str, call: Callable[[], Awaitable[T]]) -> T:
        fault = self._next_fault()
        if fault == REFUSED:
            raise QueueError(self._url, "refused by a test", queue=queue)
        result = await call()
        if fault == LOST_REPLY:
            raise QueueError(self._url, "lost by a test", queue=queue, unknown=True)
        return result
