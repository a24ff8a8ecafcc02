"""The spans of a hub's publishes on threads and of its deliveries, while there is a tracer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from ..delivery.batch import Segment
from ..delivery.run import Run
from ..tracer import Span, Tracer

__all__ = ["traced_call", "with_spans"]


def traced_call(span: Span, publish: Callable[[], bool]) -> bool:
    """Publish on a thread. The span ends, and so is recorded, only if it was done there."""
    try:
        done = publish()
    except BaseException:
        with span:
            raise
    if done:
        with span:
            pass
    return done


def with_spans(tracer: Tracer, segments: Sequence[Segment], broker: str) -> Iterator[Segment]:
    """The segments of a batch, with a span for each traced message.

    The caller takes each segment after the delivery of the one before it, so the spans of a segment
    end when the next one is taken.
    """
    for segment in segments:
        with contextlib.ExitStack() as spans:
            for run in segment[1]:
                _begin(tracer, broker, run, spans)
            yield segment


def _begin(tracer: Tracer, broker: str, run: Run, spans: contextlib.ExitStack) -> None:
    for delivery in run.messages:
        if delivery.traceparent is None:
            continue
        span = tracer.process(
            broker,
            delivery.channel,
            len(delivery.payload),
            len(run.recipients),
            delivery.traceparent,
        )
        if span is not None:
            spans.enter_context(span)
            delivery.traceparent = span.traceparent  # What its hooks do belongs to this span.
