"""The spans of a hub's publishes on threads and of its deliveries, while there is a tracer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..delivery.batch import BatchObserver, Segment
from ..delivery.channel import Channel
from ..delivery.run import Run
from ..tracer import Span, Tracer

__all__ = ["traced_batch", "traced_call"]

Read = Callable[[Any, Mapping[str, Channel], float, BatchObserver], Iterable[Segment]]


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


def traced_batch(tracer: Tracer, read: Read, broker: str) -> Callable[..., Iterator[Segment]]:
    """A function that reads a batch like `read`, and makes a span for each traced message.

    The caller takes each segment after the delivery of the one before it, so the spans of a segment
    end when the next one is taken.
    """

    def segments(
        batch: Sequence[tuple[str, Any]],
        channels: Mapping[str, Channel],
        arrived_at: float,
        hub: BatchObserver,
    ) -> Iterator[Segment]:
        for segment in read(batch, channels, arrived_at, hub):
            traced = [one for run in segment[1] for one in run.messages if one.traceparent]
            if not traced:
                yield segment
                continue
            with contextlib.ExitStack() as spans:
                for run in segment[1]:
                    _begin(tracer, broker, run, spans)
                yield segment

    return segments


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
