"""Kept messages that some subscribers of a channel missed, ready to be delivered to them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..history import tag_of
from .batch import SEGMENT_BYTES, BatchObserver, GapBefore, Segment, gap_reason, is_utf8
from .channel import Channel, Recipients
from .envelope import IS_TEXT, UNCOMPRESSED, NewerVersion, NotOurs, unpack_kept
from .events import VERSION
from .message import Delivery
from .run import RUN_BYTES, RUN_MESSAGES, Run
from .sequence import PublisherBudget, SequenceTracker

__all__ = ["Replayed", "read_replay", "replay_segments"]


class Replayed(NamedTuple):
    """One kept message.

    Attributes:
        gap: the reason of a gap before it, because its publisher failed to publish; or None.
        delivery: None if nothing is to be delivered.
    """

    gap: str | None
    delivery: Delivery | None


def read_replay(
    name: str, messages: Sequence[bytes], history_id: bytes, observer: BatchObserver
) -> list[Replayed]:
    """Unpack successive kept messages of one channel.

    Args:
        history_id: of the server that kept them.

    Returns:
        One item for each message.
    """
    tracker = SequenceTracker(PublisherBudget())
    found = []
    for message in messages:
        try:
            envelope, link = unpack_kept(message)
        except NotOurs:
            observer.poison(name)
            found.append(Replayed(None, None))
            continue
        except NewerVersion:
            found.append(Replayed(VERSION, None))
            continue
        publisher, counter, previous, age_us, flags, origin, payload = envelope
        gap = gap_reason(tracker.observe(publisher, counter, previous, age_us))
        place = None
        if link is not None:
            place = link[0], b"%d" % link[1], tag_of(message), history_id
        is_text = flags & IS_TEXT != 0
        delivery = Delivery(name, payload, is_text, origin, not flags & UNCOMPRESSED, place)
        if is_text and not payload.isascii() and not is_utf8(delivery):
            observer.poison(name)
            found.append(Replayed(gap, None))
            continue
        found.append(Replayed(gap, delivery))
    return found


def replay_segments(
    name: str, channel: Channel, replayed: Sequence[Replayed], recipients: Recipients
) -> list[Segment]:
    """The segments that deliver messages to some subscribers of a channel; see `Segment`."""
    runs: list[Run] = []
    segments: list[Segment] = [(None, runs)]
    messages: list[Delivery] = []
    origin: bytes | None = None
    run_left, left = 0, SEGMENT_BYTES
    for gap, delivery in replayed:
        if gap is not None:
            runs, run_left = [], 0
            segments.append((GapBefore(name, channel, gap, recipients), runs))
        if delivery is None:
            continue
        if run_left <= 0 or len(messages) == RUN_MESSAGES or delivery.origin != origin:
            messages, origin, run_left = [], delivery.origin, RUN_BYTES
            runs.append(Run(channel, messages, recipients, origin))
        messages.append(delivery)
        run_left -= len(delivery.payload)
        left -= len(delivery.payload)
        if left <= 0:
            left, runs, run_left = SEGMENT_BYTES, [], 0
            segments.append((None, runs))
    return segments
