"""Queues of a hub's broker: each message waits until one reader takes it.

`Queues` adds the doorbell to the calls of the broker. A doorbell is a message without a payload on
the channel with the name of the queue. Its envelope has no previous counter, because the server
publishes only some of the doorbells: a missing one is no gap.
"""

from __future__ import annotations

import itertools

from ..broker import QueueEntry, SupportsQueue
from ..delivery.envelope import Publisher

__all__ = ["Queues"]


class Queues:
    """The queues of one hub. Call it on the event loop of the hub.

    To wait for messages, subscribe to the channel with the name of the queue; then pop, and pop
    again after each message or gap of that channel.
    """

    def __init__(self, broker: SupportsQueue) -> None:
        self._broker = broker
        self._names = itertools.count()
        self._publisher: Publisher | None = None

    async def push(
        self,
        queue: str,
        payload: bytes,
        *,
        capacity: int,
        expiry_seconds: float,
        once: bytes = b"",
    ) -> bool:
        """Put a message at the end of a queue. See `SupportsQueue.queue_push`.

        Args:
            expiry_seconds: at least a millisecond.

        Returns:
            False if the queue is full.

        Raises:
            QueueError, BrokerClosed: see `SupportsQueue.queue_push`.
        """
        return await self._broker.queue_push(
            queue,
            payload,
            capacity=capacity,
            expiry_ms=max(1, int(expiry_seconds * 1000)),
            doorbell=self._doorbell(),
            once=once,
        )

    async def pop(self, queue: str) -> tuple[QueueEntry | None, int]:
        """Take the first message. See `SupportsQueue.queue_pop`."""
        return await self._broker.queue_pop(queue)

    async def give_back(self, queue: str, entry: QueueEntry) -> None:
        """Put a message back to the front. See `SupportsQueue.queue_return`."""
        await self._broker.queue_return(queue, entry, doorbell=self._doorbell())

    async def clear(self, prefix: str) -> None:
        """Empty the queues whose names begin with `prefix`. See `SupportsQueue.queue_clear`."""
        await self._broker.queue_clear(prefix)

    def _doorbell(self) -> bytes:
        if self._publisher is None:
            self._publisher = Publisher(1)
        # A publisher that does not know the channel writes 0 for the previous counter.
        (header,) = self._publisher.headers([str(next(self._names))], is_text=False)
        return header
