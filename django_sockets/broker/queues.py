"""The ability to keep queues: each message waits until one reader takes it."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

__all__ = ["QueueEntry", "SupportsQueue"]


class QueueEntry(NamedTuple):
    """One message of a queue.

    Attributes:
        payload: the bytes that were pushed.
        expires_ms: when the message expires, by the clock of the server; opaque to callers.
    """

    payload: bytes
    expires_ms: int


@runtime_checkable
class SupportsQueue(Protocol):
    """A broker that keeps queues: each message waits until one reader takes it.

    A queue has the name of a channel. Its messages are in the order of the pushes. Whenever the
    first message is put into an empty queue, the `doorbell` is published on that channel in the
    same atomic step, so that a waiting reader need not ask again and again. A message is taken at
    most once, also if its reader fails afterwards.

    `BrokerContract` checks this on backends that have the methods.
    """

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
        """Put a message at the end of a queue.

        Args:
            queue: a valid channel name.
            payload: at most `limits.max_payload_bytes`.
            capacity: the most messages in the queue, over 0.
            expiry_ms: the message is dropped if no reader takes it within this time.
            doorbell: the bytes to publish if the queue was empty.
            once: an identifier of the message; a second push with the same one within `expiry_ms`
                does nothing and returns True. Empty for none.

        Returns:
            False if the queue is full; nothing was pushed.

        Raises:
            QueueError: the message was not pushed, or it is `unknown` whether it was.
            BrokerClosed: after `aclose`.
        """

    async def queue_pop(self, queue: str) -> tuple[QueueEntry | None, int]:
        """Take the first message of a queue.

        Returns:
            The message, or None if the queue is empty; and the number of expired messages that were
            dropped before it.

        Raises:
            QueueError: no message was taken; or it is `unknown` whether one was taken and lost.
            BrokerClosed: after `aclose`.
        """

    async def queue_return(self, queue: str, entry: QueueEntry, *, doorbell: bytes) -> None:
        """Put a message back to the front of its queue, unless it has expired.

        Raises:
            QueueError: the message was not put back, or it is `unknown` whether it was.
            BrokerClosed: after `aclose`.
        """

    async def queue_clear(self, prefix: str) -> None:
        """Remove all messages of all queues whose names begin with `prefix`.

        Raises:
            QueueError: some queues may remain.
            BrokerClosed: after `aclose`.
        """
