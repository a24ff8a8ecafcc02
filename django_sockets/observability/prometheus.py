"""The metrics in the form of `prometheus_client`: a collector, its text, and a server for it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from typing import Any, cast
from weakref import WeakKeyDictionary

from ..errors import ConfigurationError, pip_command
from ..hub.process import counters_of_process
from ..observer import add_observer, remove_observer
from ..runtime import local_hubs
from .definitions import METRICS, NAMESPACE, Definition
from .measurements import Distribution, Measurements, expected_labels

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.multiprocess import MultiProcessCollector
    from prometheus_client.registry import REGISTRY, Collector
    from prometheus_client.utils import floatToGoString

    from .multiprocess import write_now, write_regularly
except ModuleNotFoundError as exc:
    raise ConfigurationError(
        f"the package {exc.name!r} is not installed: run {pip_command('prometheus')}"
    ) from exc

__all__ = ["HubCollector", "collect_metrics", "metrics_text", "start_metrics_server"]

MULTIPROCESS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""The variable with the directory that several processes share; see `prometheus_client`."""


class HubCollector(Collector):
    """Collects the metrics of this process: of all hubs, and of events since `collect_metrics`.

    Any thread may call it. It takes no lock that an event loop waits for.

    Attributes:
        measurements: the observer that counts events.
    """

    def __init__(self) -> None:
        self.measurements = Measurements()
        self._closing: list[Callable[[], None]] = []

    def on_close(self, call: Callable[[], None]) -> None:
        """Call a function once when the collector is closed."""
        self._closing.append(call)

    def close(self) -> None:
        """Remove the collector from its registry, and count nothing more. Idempotent."""
        closing, self._closing = self._closing, []
        for call in closing:
            call()

    def describe(self) -> Iterable[Metric]:
        """The metrics without values, so that registering the collector collects nothing."""
        return [_family(definition) for definition in METRICS.values()]

    def collect(self) -> Iterator[Metric]:
        """All metrics with their present values."""
        # Gauges first: what they show has been counted when the counters are read.
        present = _present_numbers()
        counters = counters_of_process()
        for definition in METRICS.values():
            family = _family(definition)
            if definition.kind == "gauge":
                _add_numbers(family, definition, present)
            elif definition.sources:
                _add_numbers(family, definition, counters)
            elif definition.kind == "counter":
                counts = dict.fromkeys(expected_labels(definition.name, counters), 0)
                counts.update(self.measurements.counts(definition.name))
                for labels, count in counts.items():
                    family.add_metric(labels, count)
            else:
                states = self.measurements.distributions(definition.name)
                for labels, state in states.items():
                    family.add_metric(labels, _buckets(definition, state), state.total)
            yield family


_FAMILIES = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _family(definition: Definition) -> Any:
    make = _FAMILIES[definition.kind]
    return make(f"{NAMESPACE}_{definition.name}", definition.help, labels=definition.labels)


def _present_numbers() -> dict[str, dict[str, int]]:
    """Scheme of a broker URL -> name -> the sum over the open hubs."""
    sums: dict[str, dict[str, int]] = {}
    for hub in local_hubs():
        numbers = sums.setdefault(hub.config.url.scheme, {})
        for name, number in cast("dict[str, int]", hub.stats()).items():
            numbers[name] = numbers.get(name, 0) + number
    return sums


def _add_numbers(
    family: Any, definition: Definition, numbers_by_scheme: Mapping[str, Mapping[str, int]]
) -> None:
    for scheme, numbers in numbers_by_scheme.items():
        for source, label in definition.sources.items():
            family.add_metric([scheme, label] if label else [scheme], numbers[source])


def _buckets(definition: Definition, state: Distribution) -> list[tuple[str, int]]:
    """The cumulative buckets of a histogram."""
    bounds = [*map(floatToGoString, definition.buckets), "+Inf"]
    return list(zip(bounds, accumulate(state.counts), strict=True))


_collectors: WeakKeyDictionary[CollectorRegistry, HubCollector] = WeakKeyDictionary()
_changing = threading.Lock()


def collect_metrics(registry: CollectorRegistry = REGISTRY) -> HubCollector:
    """Offer the metrics of this process in a registry. A second call has no effect.

    Call it when the process starts, for example in `ready` of an AppConfig or in `asgi.py`: events
    before the call are not in the histograms. Counters of hubs include what happened before. In a
    forked child all metrics begin at 0.

    If the variable PROMETHEUS_MULTIPROC_DIR is set, the metrics are also written to that directory,
    every 5 s, and when the process ends normally.

    Returns:
        The collector of the registry; `close` removes it.
    """
    with _changing:
        collector = _collectors.get(registry)
        if collector is None:
            collector = HubCollector()
            registry.register(collector)
            add_observer(collector.measurements)
            _collectors[registry] = collector
            collector.on_close(partial(_forget, registry, collector))
            if os.environ.get(MULTIPROCESS_DIRECTORY):
                collector.on_close(write_regularly(collector.collect))
        return collector


def _forget(registry: CollectorRegistry, collector: HubCollector) -> None:
    with _changing:
        _collectors.pop(registry, None)
        registry.unregister(collector)
    remove_observer(collector.measurements)


def metrics_text(accept: str = "", registry: CollectorRegistry = REGISTRY) -> tuple[bytes, str]:
    """The text for Prometheus, from a registry. For any thread.

    It calls `collect_metrics`. With PROMETHEUS_MULTIPROC_DIR, it is the text of all processes that
    share the directory, and has nothing else of the registry.

    Args:
        accept: the header Accept of the request, which may ask for OpenMetrics.

    Returns:
        The text, and its content type.
    """
    collect_metrics(registry)
    if os.environ.get(MULTIPROCESS_DIRECTORY):
        write_now()
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def start_metrics_server(
    ports: int | Iterable[int], *, host: str = "127.0.0.1", registry: CollectorRegistry = REGISTRY
) -> int:
    """Serve the metrics of this process with HTTP, on a thread of its own.

    Anybody who can reach the port can read them.

    Args:
        ports: one port, or several of which the first free one is taken: with `range(9101, 9109)`,
            each of eight processes gets a port of its own. 0 is any free port.
        host: the address to listen on.

    Returns:
        The port.

    Raises:
        OSError: no port is free, or the address is wrong.
    """
    collect_metrics(registry)
    problem: OSError | None = None
    for port in [ports] if isinstance(ports, int) else ports:
        try:
            server, _ = start_http_server(port, addr=host, registry=registry)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
            problem = exc
        else:
            return int(server.server_port)
    raise problem or OSError("there is no port to listen on: name at least one")
