"""Reports the publishes and deliveries of a hub, while there are observers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ..delivery.batch import Segment
from ..delivery.envelope import published_at_of
from ..delivery.fanout import FanOutCounters
from ..errors import PublishError
from ..observer import CountBatch, Observer, Published, log_failure

__all__ = ["ObservedDelivery", "observed_call", "observed_publish"]

LAG_INTERVAL_SECONDS = 0.01
"""Minimum interval between two measurements of the lag. One costs as much as the rest of a report.
"""


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
    """Reports the batches of one hub, which are delivered one after the other.

    Args:
        broker: the scheme of the broker's URL.
        counters: the counters of the hub.
    """

    __slots__ = (
        "_arrived_at",
        "_broker",
        "_counters",
        "_delivered_before",
        "_lag",
        "_messages",
        "_next_lag_at",
    )

    def __init__(self, broker: str, counters: FanOutCounters) -> None:
        self._broker = broker
        self._counters = counters
        self._next_lag_at = 0.0
        self._arrived_at = 0.0
        self._delivered_before = 0
        self._messages = 0
        self._lag: float | None = None

    def begin(
        self, batch: Sequence[tuple[str, Any]], segments: Sequence[Segment], arrived_at: float
    ) -> None:
        """The delivery of a batch begins.

        Args:
            segments: the parts of the batch.
            arrived_at: the time of the batch (`time.monotonic`).
        """
        self._arrived_at = arrived_at
        self._delivered_before = self._counters.delivered
        self._lag = None
        if arrived_at >= self._next_lag_at:
            self._lag = self._lag_seconds(batch[0][1], arrived_at)
        runs = segments[0][1]
        if len(segments) == 1 and len(runs) == 1:  # True for most batches of one message.
            self._messages = len(runs[0].messages)
        else:
            self._messages = sum(len(run.messages) for _, runs in segments for run in runs)

    def end(self, count_batch: CountBatch) -> None:
        """All of the batch was delivered or queued: report it."""
        try:
            count_batch(
                self._broker,
                self._messages,
                self._counters.delivered - self._delivered_before,
                time.monotonic() - self._arrived_at,
                self._lag,
            )
        except Exception as exc:
            log_failure("batch_delivered", exc)

    def _lag_seconds(self, message: object, arrived_at: float) -> float | None:
        self._next_lag_at = arrived_at + LAG_INTERVAL_SECONDS
        sent_at = published_at_of(message) if isinstance(message, bytes) else None
        return None if sent_at is None else max(0.0, arrived_at - sent_at)
