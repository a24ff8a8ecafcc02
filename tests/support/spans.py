"""Recorded spans for tests: an in-memory exporter, and the form in which processes print them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler

from django_sockets.observability import start_tracing, stop_tracing

__all__ = ["Spans", "exported", "spans_of_process"]


class Spans:
    """The ended spans of a provider."""

    def __init__(self, sampler: Sampler = DEFAULT_ON) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.all]

    def one(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self.all if span.name == name]
        return span


@contextmanager
def spans_of_process(sampler: Sampler = DEFAULT_ON, **options: Any) -> Iterator[Spans]:
    """Trace this process within a `with` block."""
    spans = Spans(sampler)
    start_tracing(tracer_provider=spans.provider, **options)
    try:
        yield spans
    finally:
        stop_tracing()
        spans.provider.shutdown()


def exported(spans: list[ReadableSpan]) -> list[dict[str, Any]]:
    """Name, kind, ids and attributes of spans, for JSON."""
    return [
        {
            "name": span.name,
            "kind": span.kind.name,
            "trace": span.context.trace_id,
            "id": span.context.span_id,
            "parent": span.parent and span.parent.span_id,
            "attributes": dict(span.attributes or {}),
        }
        for span in spans
    ]
