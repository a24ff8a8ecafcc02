"""Delivers the batches that the broker of a hub reads, one after the other.

A batch is delivered within the call of the broker, without a task, as long as no client has to be
waited for. The broker waits for the rest of a batch before it reads on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from ..delivery.batch import BatchObserver, GapBefore, Segment, has_trace, read_batch
from ..delivery.channel import Channel
from ..delivery.eager import start
from ..delivery.fanout import FanOut, FrameWrites, write_frames
from ..delivery.flow_control import Congestion
from ..delivery.turns import Turns
from ..observer import CountBatch, seam
from ..tracer import tracing
from .observed import ObservedDelivery
from .stats import Counters

__all__ = ["Batch", "BatchDelivery", "BatchOwner"]

Batch = Sequence[tuple[str, bytes]]
"""Pairs of channel name and message, in the order of the stream."""


ReadBatch: TypeAlias = Callable[
    [Any, Mapping[str, Channel], float, BatchObserver], Sequence[Segment]
]
"""Reads a batch like `read_batch`."""


class BatchOwner(BatchObserver, Protocol):
    """The hub, as the delivery of its batches uses it."""

    closed: bool
    congestion: Congestion
    counters: Counters
    loop: asyncio.AbstractEventLoop

    def signal(self, gap: GapBefore) -> None:
        """Signal a gap of a batch."""

    def delivery_failed(self, batch: Batch, exc: Exception | None) -> None:
        """Signal a gap on the channels of a batch; None: the delivery was cancelled."""


class BatchDelivery:
    """The delivery of the batches of one hub.

    Several readers of a broker may call it at the same time. Their batches are then delivered one
    after the other, because a channel may move from one server of a cluster to another.

    Args:
        owner: the hub.
        channels: its subscribed channels by name.
        broker: the scheme of the broker's URL.
    """

    def __init__(self, owner: BatchOwner, channels: Mapping[str, Channel], broker: str) -> None:
        self._owner = owner
        self._broker = broker
        self._channels = channels
        self._counters = owner.counters
        self._observed = ObservedDelivery(broker, owner.counters)
        self._count_batch: CountBatch | None = None  # Of the present batch.
        self._turns = Turns()

    @property
    def is_busy(self) -> bool:
        """A batch is being delivered; later ones wait."""
        return self._turns.taken

    def deliver_now(self, batch: Batch, read: ReadBatch | None = None) -> asyncio.Task[None] | None:
        """Deliver a batch, or begin to.

        Args:
            read: reads the batch; `read_batch` by default.

        Returns:
            None if everything is delivered or queued; else a task that the reader has to await
            before it reads on. If it is cancelled, a gap is signalled.
        """
        owner, turns = self._owner, self._turns
        if not turns.take():
            return owner.loop.create_task(
                self._in_turn(batch, read), name="django_sockets delivery"
            )
        writes = None
        try:
            if seam.count_batch is None and tracing.tracer is None:
                self._count_batch = None
                found = (read or read_batch)(batch, self._channels, time.monotonic(), owner)
                segments = iter(found)
            else:
                segments = self._observe(batch, read)
            writes = self._go(segments)
            if writes is None:
                return None
        except Exception as exc:
            owner.delivery_failed(batch, exc)
            return None
        finally:
            if writes is None:
                turns.give_back()
        return start(self._finish(batch, read, segments, writes), owner.loop)

    async def _in_turn(self, batch: Batch, read: ReadBatch | None) -> None:
        try:
            await self._turns.wait()
        except asyncio.CancelledError:
            if not self._owner.closed:
                self._owner.delivery_failed(batch, None)
            raise
        await self._finish(batch, read, None, None)

    def _observe(self, batch: Batch, read: ReadBatch | None) -> Iterator[Segment]:
        """Read a batch, and begin the report and the spans of its delivery, if there are any."""
        arrived_at = time.monotonic()
        segments = (read or read_batch)(batch, self._channels, arrived_at, self._owner)
        self._count_batch = seam.count_batch
        if self._count_batch is not None:
            self._observed.begin(batch, segments, arrived_at)
        if (tracer := tracing.tracer) is not None and has_trace(segments):
            from .traced import with_spans  # Only processes with traced messages load it.

            return with_spans(tracer, segments, self._broker)
        return iter(segments)

    def _go(self, segments: Iterator[Segment]) -> FrameWrites | None:
        """Deliver without waiting; return the first writes that are not finished, or None."""
        for gap, runs in segments:
            if gap is not None:
                self._owner.signal(gap)
            if runs:
                writes = write_frames(runs, self._counters)
                if writes is not None:
                    return writes
        if self._count_batch is not None:
            self._observed.end(self._count_batch)
        return None

    async def _finish(
        self,
        batch: Batch,
        read: ReadBatch | None,
        segments: Iterator[Segment] | None,
        writes: FrameWrites | None,
    ) -> None:
        """Deliver the rest of a batch, or a whole batch if `segments` is None."""
        owner = self._owner
        try:
            if segments is None:
                segments = self._observe(batch, read)
                writes = self._go(segments)
            while writes is not None:
                while not writes.complete:
                    await asyncio.sleep(0)
                    if writes.write():
                        break
                else:
                    fan_out = FanOut(writes.unfinished(), owner.congestion, self._counters)
                    await fan_out.run(owner.loop)
                    self._counters.delivered += writes.deliveries
                writes = self._go(segments)
        except asyncio.CancelledError:
            if writes is not None:
                writes.abandon()
            if not owner.closed:
                owner.delivery_failed(batch, None)
            raise
        except Exception as exc:
            # The reader of the broker must continue, and subscribers must be told of the loss.
            owner.delivery_failed(batch, exc)
        finally:
            self._turns.give_back()
