"""Reads a batch of the broker: removes envelopes, checks sequences, and forms runs to deliver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .channel import Channel
from .envelope import NewerVersion, NotOurs, unpack
from .events import LATE, MISSED, VERSION
from .fanout import Run, new_run
from .message import Delivery
from .sequence import Verdict

__all__ = ["GapBefore", "Segment", "read_batch"]

RUN_BYTES, RUN_MESSAGES = 32 * 1024, 256
"""The most that one subscriber gets before the next subscriber gets the same messages. It is less
than the write buffer at which servers let `send` wait, and less than `TURN_DELIVERIES`."""

_DELIVER, _GAP = Verdict.DELIVER, Verdict.GAP
_GAP_REASONS = {Verdict.GAP: MISSED, Verdict.LATE: LATE}


class GapBefore(NamedTuple):
    """A gap on one channel."""

    name: str
    channel: Channel
    reason: str


class Segment(NamedTuple):
    """A part of a batch without a gap inside it.

    Attributes:
        gap: a gap to signal before the runs are delivered, or None.
        runs: the messages in the order of the stream.
    """

    gap: GapBefore | None
    runs: list[Run]


def read_batch(
    batch: Sequence[tuple[str, bytes]],
    channels: Mapping[str, Channel],
    arrived_at: float,
    *,
    on_poison: Callable[[str], None],
    on_late: Callable[[], None],
) -> list[Segment]:
    """Read all messages of a batch.

    Args:
        batch: pairs of channel name and message, in the order of the stream.
        channels: the subscribed channels by name; messages on other channels are ignored.
        arrived_at: the time of the batch (`time.monotonic`).
        on_poison: called with the channel of each payload that no django_sockets process published.
        on_late: called for each message that is dropped as repeated or late.

    Returns:
        At least one segment.
    """
    segments = [Segment(None, [])]
    runs = segments[0].runs
    run: list[Delivery] = []
    run_channel: Channel | None = None
    size_bytes = 0
    for name, message in batch:
        channel = channels.get(name)
        if channel is None:
            continue
        try:
            publisher, counter, previous, age_us, is_text, origin, payload = unpack(message)
        except NotOurs:
            on_poison(name)
            continue
        except NewerVersion:
            segments.append(Segment(GapBefore(name, channel, VERSION), []))
            runs, run_channel = segments[-1].runs, None
            continue
        verdict = channel.observe(publisher, counter, previous, age_us, arrived_at)
        if verdict is not _DELIVER:
            reason = _GAP_REASONS.get(verdict)
            if reason is not None:
                segments.append(Segment(GapBefore(name, channel, reason), []))
                runs, run_channel = segments[-1].runs, None
            if verdict is not _GAP:
                on_late()
                continue
        delivery = Delivery(name, payload, is_text, origin)
        if is_text and not payload.isascii() and not _is_utf8(delivery):
            on_poison(name)
            continue
        if channel is not run_channel or size_bytes >= RUN_BYTES or len(run) == RUN_MESSAGES:
            run, run_channel, size_bytes = [], channel, 0
            runs.append(new_run(channel, run))
        run.append(delivery)
        size_bytes += len(payload)
    return segments


def _is_utf8(delivery: Delivery) -> bool:
    try:
        delivery.event()
    except UnicodeDecodeError:
        return False
    return True
