"""Counts and histograms of what the observer is told. It does not know Prometheus."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from ..connection.close_codes import FINAL, RECONNECTIONS, UNAUTHORIZED
from ..forks import abandon_in_child
from ..observer import (
    BatchDelivered,
    ConnectFailed,
    ConnectionClosed,
    ConsumerSlow,
    HandshakeEnded,
    HistoryHealed,
    HookCalled,
    LinkLost,
    LinkRestored,
    Observer,
    Published,
    RequestAnswered,
)
from .definitions import METRICS

__all__ = ["Distribution", "Measurements", "code_label", "expected_labels"]

MOST_SERIES = 2000
"""The most combinations of label values of one metric. Further ones are counted as "other"."""
OTHER = "other"


class Distribution(NamedTuple):
    """The state of one histogram.

    Attributes:
        counts: number of values in each bucket; the last one has no upper bound.
        total: the sum of all values.
    """

    counts: Sequence[int]
    total: float


# The classes below need no lock. The interpreter changes threads only at calls and jumps, and there
# is neither between the reading and the writing of a count. A lock would take half of the time.


class _Histogram:
    """The values of one combination of labels."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        place = bisect_left(self.bounds, value)
        self.counts[place] += 1
        self.total += value

    def state(self) -> Distribution:
        return Distribution(tuple(self.counts), self.total)


class _Counter:
    """The count of one combination of labels."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, count: int) -> None:
        self.value += count

    def state(self) -> int:
        return self.value


T = TypeVar("T", _Counter, _Histogram)


class _Series(Generic[T]):
    """One metric: a counter or histogram for each combination of label values."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Callable[[], T] = make
        self._lock = threading.Lock()
        self._by_labels: dict[tuple[str, ...], T] = {}

    def at(self, *labels: str) -> T:
        one = self._by_labels.get(labels)
        if one is None:
            with self._lock:
                if len(self._by_labels) >= MOST_SERIES and labels not in self._by_labels:
                    labels = (OTHER,) * len(labels)
                one = self._by_labels.setdefault(labels, self._make())
        return one

    def states(self) -> dict[tuple[str, ...], Any]:
        return {labels: one.state() for labels, one in self._by_labels.copy().items()}


class Measurements(Observer):
    """The observer behind the metrics. For any thread."""

    def __init__(self) -> None:
        self._begin()
        abandon_in_child(self)

    def _begin(self) -> None:
        self._counters = {
            name: _Series(_Counter)
            for name, definition in METRICS.items()
            if definition.kind == "counter" and not definition.sources
        }
        self._batches: dict[str, tuple[_Counter, _Histogram, _Histogram]] = {}
        self._histograms = {
            name: _Series(partial(_Histogram, definition.buckets))
            for name, definition in METRICS.items()
            if definition.kind == "histogram"
        }

    def abandon(self) -> None:
        """Begin at zero in a forked child: its parent reports its own numbers."""
        self._begin()

    def counts(self, name: str) -> dict[tuple[str, ...], int]:
        """Label values -> count, of a counter without `sources`."""
        return self._counters[name].states()

    def distributions(self, name: str) -> dict[tuple[str, ...], Distribution]:
        """Label values -> state, of a histogram."""
        return self._histograms[name].states()

    # Events

    def published(self, event: Published) -> None:
        self._observe("publish_seconds", event.seconds, event.broker, event.outcome)
        self._observe("payload_bytes", event.payload_bytes, event.broker)

    def batch_delivered(self, event: BatchDelivered) -> None:
        self.count_batch(
            event.broker, event.messages, event.deliveries, event.seconds, event.lag_seconds
        )

    def count_batch(
        self,
        broker: str,
        messages: int,
        deliveries: int,
        seconds: float,
        lag_seconds: float | None,
    ) -> None:
        """`batch_delivered` without an event; see `observer.CountBatch`."""
        # The most frequent event: it looks up one dict instead of six, and calls no method of the
        # series. See docs/performance.md.
        received, durations, lag = self._batches.get(broker) or self._batch_series(broker)
        received.value += messages
        place = bisect_left(durations.bounds, seconds)
        durations.counts[place] += 1
        durations.total += seconds
        if lag_seconds is not None:
            lag.observe(lag_seconds)

    def _batch_series(self, broker: str) -> tuple[_Counter, _Histogram, _Histogram]:
        series = self._batches[broker] = (
            self._counters["messages_received"].at(broker),
            self._histograms["delivery_seconds"].at(broker),
            self._histograms["broker_lag_seconds"].at(broker),
        )
        return series

    def hook_called(self, event: HookCalled) -> None:
        name = f"{event.socket.__module__}.{event.socket.__qualname__}"
        self._add("hook_calls", 1, name, event.hook, event.outcome)
        self._observe("hook_seconds", event.seconds, name, event.hook)

    def request_answered(self, event: RequestAnswered) -> None:
        self._observe("request_seconds", event.seconds, event.outcome)

    def handshake_ended(self, event: HandshakeEnded) -> None:
        self._add("handshakes", 1, event.outcome, str(event.status))
        self._observe("handshake_seconds", event.seconds, event.outcome)

    def connection_closed(self, event: ConnectionClosed) -> None:
        self._add("connections_closed", 1, code_label(event.code))

    def history_healed(self, event: HistoryHealed) -> None:
        self._observe("healing_seconds", event.seconds, event.broker, event.outcome)

    def consumer_slow(self, event: ConsumerSlow) -> None:
        self._add("slow_consumers", 1)
        self._observe("slow_consumer_queue_bytes", event.size_bytes)

    def link_lost(self, event: LinkLost) -> None:
        self._add("links_lost", 1, event.broker, event.link)

    def link_restored(self, event: LinkRestored) -> None:
        self._observe("link_restore_seconds", event.seconds, event.broker, event.link)

    def connect_failed(self, event: ConnectFailed) -> None:
        self._add("connect_errors", 1, event.broker, event.link)

    def _add(self, name: str, count: int, *labels: str) -> None:
        self._counters[name].at(*labels).add(count)

    def _observe(self, name: str, value: float, *labels: str) -> None:
        self._histograms[name].at(*labels).observe(value)


_CODES = {*RECONNECTIONS, *FINAL, UNAUTHORIZED, 4400, 4403, 4404}


def expected_labels(name: str, brokers: Collection[str]) -> list[tuple[str, ...]]:
    """The labels with which a counter is shown before its first event, with the value 0.

    `increase()` does not see the first event of a series that begins with the value 1.
    """
    labels = METRICS[name].labels
    if labels == ("code",):
        return [(str(code),) for code in sorted(_CODES)]
    if labels == ("broker", "link"):
        links = ("publishing", "subscribing")
        return [
            *((broker, link) for broker in brokers if broker != "memory" for link in links),
            *((broker, "sentinel") for broker in brokers if "sentinel" in broker),
        ]
    if labels == ("broker",):
        return [(broker,) for broker in brokers]
    if labels == ("outcome", "status"):
        statuses = ("401", "403", "404", "503")
        return [("accepted", "101"), *(("refused", one) for one in statuses), ("failed", "0")]
    return [] if labels else [()]


def code_label(code: int) -> str:
    """A close code as a label value: a code of this library, or the range of another one.

    A client may close with any code, and each label value is a new series.
    """
    if code in _CODES:
        return str(code)
    return f"{code // 1000}xxx" if 3000 <= code < 5000 else OTHER
