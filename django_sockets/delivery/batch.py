"""Reads a batch of the broker: removes envelopes, checks sequences, and forms runs to deliver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from ..tracer import tracing
from .channel import Channel, ChannelHistory, Recipients
from .envelope import IS_TEXT, UNCOMPRESSED, NewerVersion, NotOurs, traceparent_of, unpack
from .events import LATE, MISSED, VERSION
from .message import Delivery
from .run import RUN_BYTES, RUN_MESSAGES, Run
from .sequence import Verdict

__all__ = [
    "SEGMENT_BYTES",
    "BatchObserver",
    "GapBefore",
    "Segment",
    "gap_reason",
    "has_trace",
    "is_utf8",
    "read_batch",
]

SEGMENT_BYTES = 64 * 1024
"""The most that one connection gets with one write; it bounds the memory for clients that do not
read. A larger message makes a segment of its own."""

_DELIVER, _GAP = Verdict.DELIVER, Verdict.GAP
_GAP_REASONS = {Verdict.GAP: MISSED, Verdict.LATE: LATE}


class GapBefore(NamedTuple):
    """A gap on one channel.

    Attributes:
        recipients: the subscribers that missed something; None for all subscribers of the channel.
    """

    name: str
    channel: Channel
    reason: str
    recipients: Recipients | None = None


Segment: TypeAlias = tuple[GapBefore | None, list[Run]]
"""A part of a batch of at most 64 KiB, or one larger message, without a gap inside it: a gap to
signal before the messages are delivered, and the messages in the order of the stream."""


class BatchObserver(Protocol):
    """Is told what a batch contains besides messages to deliver."""

    def poison(self, channel: str) -> None:
        """Count and log a payload that no django_sockets process published."""

    def late(self) -> None:
        """Count a message that is dropped as repeated or late."""

    def missing(self, channel: str) -> None:
        """Read the history of a channel, of which live messages are missing."""


def read_batch(
    batch: Sequence[tuple[str, bytes]],
    channels: Mapping[str, Channel],
    arrived_at: float,
    observer: BatchObserver,
) -> list[Segment]:
    """Read all messages of a batch.

    Args:
        batch: pairs of channel name and message, in the order of the stream.
        channels: the subscribed channels by name; messages on other channels are ignored.
        arrived_at: the time of the batch (`time.monotonic`).

    Returns:
        At least one segment.
    """
    runs: list[Run] = []
    segments: list[Segment] = [(None, runs)]
    # Of the last run: its messages, and what else a message must share with them.
    messages: list[Delivery] = []
    run_channel: Channel | None = None
    run_origin: bytes | None = None
    run_left = 0
    left = SEGMENT_BYTES
    channel: Channel | None = None
    last_name: str | None = None
    history: ChannelHistory | None = None
    place = None
    is_traced = tracing.tracer is not None
    for name, message in batch:
        # Successive messages of a channel have the same name object, apart from brokers of others.
        if name is not last_name:
            last_name, channel, history, place = name, channels.get(name), None, None
            if channel is not None:
                history = channel.history
        if channel is None:
            continue
        try:
            if history is None:
                publisher, counter, previous, age_us, flags, origin, payload = unpack(message)
            else:
                taken = history.take(message, channel)
                if taken is None:
                    if history.incomplete:
                        observer.missing(name)
                    continue
                publisher, counter, previous, age_us, flags, origin, payload, place = taken
        except NotOurs:
            observer.poison(name)
            continue
        except NewerVersion:
            runs, run_channel = [], None
            segments.append((GapBefore(name, channel, VERSION), runs))
            continue
        verdict = channel.observe(publisher, counter, previous, age_us, arrived_at)
        if verdict is not _DELIVER:
            reason = _GAP_REASONS.get(verdict)
            if reason is not None:
                runs, run_channel = [], None
                segments.append((GapBefore(name, channel, reason), runs))
            if verdict is not _GAP:
                observer.late()
                continue
        is_text = flags & IS_TEXT != 0
        delivery = Delivery(name, payload, is_text, origin, not flags & UNCOMPRESSED, place)
        if is_traced and (traceparent := traceparent_of(message)) is not None:
            delivery.traceparent = traceparent
        if is_text and not payload.isascii() and not is_utf8(delivery):
            observer.poison(name)
            continue
        size_bytes = len(payload)
        if (
            channel is run_channel
            and run_left > 0
            and len(messages) < RUN_MESSAGES
            and origin == run_origin
        ):
            messages.append(delivery)
        else:
            messages = [delivery]
            run_channel, run_origin, run_left = channel, origin, RUN_BYTES
            recipients = channel.recipients or channel.current_recipients()
            runs.append(Run(channel, messages, recipients, origin))
        run_left -= size_bytes
        left -= size_bytes
        if left <= 0:
            left, runs, run_channel = SEGMENT_BYTES, [], None
            segments.append((None, runs))
    return segments


def has_trace(segments: Sequence[Segment]) -> bool:
    """Whether a message belongs to a trace that is recorded."""
    for _, runs in segments:
        for run in runs:
            for delivery in run.messages:
                if delivery.traceparent is not None:
                    return True
    return False


def gap_reason(verdict: Verdict) -> str | None:
    """The reason of the gap that a verdict stands for, or None."""
    return _GAP_REASONS.get(verdict)


def is_utf8(delivery: Delivery) -> bool:
    """Whether the payload of a text message is UTF-8."""
    try:
        delivery.event()
    except UnicodeDecodeError:
        return False
    return True
