"""The receiver of a broker's messages. The hub is one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Sequence
from typing import Protocol, runtime_checkable

__all__ = ["HANDED_OVER", "EagerSink", "Sink", "deliver_now"]


HANDED_OVER = "unsubscribed by the server"
"""Reason of `Sink.lost`: a server that works has given the channel away, as when a slot moves."""


class Sink(Protocol):
    """The receiver of messages. A broker calls both methods on its event loop."""

    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        """Take 1..n pairs of channel and payload in the order of the stream.

        The reader of the broker waits until the call returns.
        """

    def lost(self, channels: Sequence[str], reason: str) -> None:
        """Take note that messages on these subscribed channels may be missing at this point."""


@runtime_checkable
class EagerSink(Sink, Protocol):
    """A sink that takes messages without a task, as the hub does."""

    def deliver_now(self, batch: Sequence[tuple[str, bytes]]) -> Awaitable[None] | None:
        """`deliver` within the call.

        Returns:
            None if the sink has taken the batch; else an object that the reader awaits before it
            delivers anything more.
        """


def deliver_now(
    sink: Sink, subscribed: Callable[[], Container[str]]
) -> Callable[[Sequence[tuple[str, bytes]]], Awaitable[None] | None]:
    """`deliver_now` of a sink; for a sink without it, a function that awaits `deliver`.

    Args:
        subscribed: returns the subscribed channels. An unsubscribe may come between the reading of
            a batch and the begin of `deliver`.
    """
    if isinstance(sink, EagerSink):
        return sink.deliver_now

    async def deliver(batch: Sequence[tuple[str, bytes]]) -> None:
        channels = subscribed()
        batch = [item for item in batch if item[0] in channels]
        if batch:
            await sink.deliver(batch)

    return deliver
