"""Reports the publishes and deliveries of a hub, while there are observers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ..delivery.batch import BatchObserver, Segment
from ..delivery.channel import Channel
from ..delivery.envelope import published_at_of
from ..delivery.fanout import FanOutCounters
from ..errors import PublishError
from ..observer import BatchDelivered, Observer, Published

__all__ = ["ObservedDelivery", "observed_call", "observed_publish"]

LAG_INTERVAL_SECONDS = 0.01
"""Minimum interval between two measurements of the lag. One costs as much as the rest of a report.
"""

Read = Callable[[Any, Mapping[str, Channel], float, BatchObserver], Iterable[Segment]]


async def observed_publish(
    observer: Observer,
    publishing: Coroutine[Any, Any, None],
    broker: str,
    channels: int,
    payload_bytes: int,
) -> None:
    """Await a publish, and report it."""
    started, outcome = time.perf_counter(), "ok"
    try:
        await publishing
    except BaseException as exc:
        outcome = _outcome(exc)
        raise
    finally:
        observer.published(_published(broker, channels, payload_bytes, started, outcome))


def observed_call(
    observer: Observer, publish: Callable[[], bool], broker: str, channels: int, payload_bytes: int
) -> bool:
    """Publish on a thread, and report it if it was done there."""
    started, outcome = time.perf_counter(), "ok"
    done = True
    try:
        done = publish()
    except BaseException as exc:
        outcome = _outcome(exc)
        raise
    finally:
        if done:
            observer.published(_published(broker, channels, payload_bytes, started, outcome))
    return done


def _published(
    broker: str, channels: int, payload_bytes: int, started: float, outcome: str
) -> Published:
    return Published(
        broker=broker,
        channels=channels,
        payload_bytes=payload_bytes,
        seconds=time.perf_counter() - started,
        outcome=outcome,
    )


def _outcome(exc: BaseException) -> str:
    if isinstance(exc, PublishError):
        return "unknown" if exc.unknown else "failed"
    return "cancelled" if isinstance(exc, asyncio.CancelledError) else "error"


class ObservedDelivery:
    """Reports the batches of one hub.

    Args:
        broker: the scheme of the broker's URL.
        counters: the counters of the hub.
    """

    __slots__ = ("_broker", "_counters", "_next_lag_at")

    def __init__(self, broker: str, counters: FanOutCounters) -> None:
        self._broker = broker
        self._counters = counters
        self._next_lag_at = 0.0

    def reader(self, observer: Observer, read: Read) -> Callable[..., Iterator[Segment]]:
        """A function that reads a batch like `read`, and reports when all of it was delivered.

        The caller takes each segment after the delivery of the one before it. So the batch is
        delivered when it asks for a segment behind the last one.
        """
        return partial(self._segments, observer, read)

    def _segments(
        self,
        observer: Observer,
        read: Read,
        batch: Sequence[tuple[str, Any]],
        channels: Mapping[str, Channel],
        arrived_at: float,
        hub: BatchObserver,
    ) -> Iterator[Segment]:
        counters = self._counters
        before, messages, lag_seconds = counters.delivered, 0, None
        if arrived_at >= self._next_lag_at:
            lag_seconds = self._lag_seconds(batch[0][1], arrived_at)
        for segment in read(batch, channels, arrived_at, hub):
            for run in segment[1]:
                messages += len(run.messages)
            yield segment
        observer.batch_delivered(
            BatchDelivered(
                broker=self._broker,
                messages=messages,
                deliveries=counters.delivered - before,
                seconds=time.monotonic() - arrived_at,
                lag_seconds=lag_seconds,
            )
        )

    def _lag_seconds(self, message: object, arrived_at: float) -> float | None:
        self._next_lag_at = arrived_at + LAG_INTERVAL_SECONDS
        sent_at = published_at_of(message) if isinstance(message, bytes) else None
        return None if sent_at is None else max(0.0, arrived_at - sent_at)
