"""Writes the metrics of this process to a directory that several processes share.

This is the multiprocess mode of `prometheus_client`: each process writes its values to files, and
any of them can answer a scrape for all. In that mode `prometheus_client` ignores collectors, so the
values of ours are written to the same files, at an interval.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import values
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from ..forks import abandon_in_child
from ..log import LogThrottle

__all__ = ["WRITE_SECONDS", "write_now", "write_regularly"]

logger = logging.getLogger("django_sockets")
_failures = LogThrottle(logger, 60.0)

WRITE_SECONDS = 5.0
"""The interval of the writes. Prometheus usually asks every 15 s to 60 s."""
MODE = "livesum"
"""How gauges of several processes are combined: the sum over the living ones."""


class _Writer:
    """Writes the metrics of one collector regularly, on a thread of its own."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._places: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}
        self._start()
        abandon_in_child(self)

    def _start(self) -> None:
        name = "django_sockets metrics"
        threading.Thread(target=self._run, args=[self._stopped], name=name, daemon=True).start()

    def abandon(self) -> None:
        """A forked child has none of the threads, and writes to files of its own."""
        stopped = self._stopped.is_set()
        self._lock, self._stopped, self._places = threading.Lock(), threading.Event(), {}
        if stopped:
            self._stopped.set()
        else:
            self._start()

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.wait(WRITE_SECONDS):
            self.write()

    def write(self) -> None:
        """Write the present values."""
        try:
            with self._lock:
                for metric in self._collect():
                    for sample, value in _values_of(metric):
                        self._place(metric, sample).set(value)
        except Exception as exc:
            text = "writing the metrics for other processes failed"
            _failures.log(logging.WARNING, "write", text, exc_info=exc)

    def _place(self, metric: Metric, sample: Sample) -> Any:
        """The place of a sample in the files."""
        key = sample.name, tuple(sample.labels.items())
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = values.ValueClass(
                metric.type,
                metric.name,
                sample.name,
                tuple(sample.labels),
                tuple(sample.labels.values()),
                metric.documentation,
                multiprocess_mode=MODE if metric.type == "gauge" else "",
            )
        return place

    def stop(self) -> None:
        """Write for the last time, and stop."""
        self._stopped.set()
        self.write()


def _values_of(metric: Metric) -> Iterator[tuple[Sample, float]]:
    """The samples and values as `prometheus_client` keeps them in files.

    There, the buckets of a histogram are not cumulative, and its count is left out.
    """
    below = 0.0
    for sample in metric.samples:
        if metric.type != "histogram":
            yield sample, sample.value
        elif sample.name.endswith("_bucket"):
            yield sample, sample.value - below
            below = sample.value
        else:
            below = 0.0
            if sample.name.endswith("_sum"):
                yield sample, sample.value


_writers: list[_Writer] = []


def write_regularly(collect: Callable[[], Iterable[Metric]]) -> Callable[[], None]:
    """Write what `collect` returns every `WRITE_SECONDS`, and when the process ends normally.

    Returns:
        A function that stops it.
    """
    writer = _Writer(collect)
    _writers.append(writer)
    atexit.register(writer.write)

    def stop() -> None:
        _writers.remove(writer)
        atexit.unregister(writer.write)
        writer.stop()

    return stop


def write_now() -> None:
    """Write the present values of this process. For any thread."""
    for writer in _writers:
        writer.write()
