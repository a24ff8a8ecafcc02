"""A batch of the broker becomes segments, with gaps exactly where messages are missing."""

from __future__ import annotations

from django_sockets.delivery.batch import RUN_BYTES, RUN_MESSAGES, Segment, read_batch
from django_sockets.delivery.channel import Channel
from django_sockets.delivery.envelope import Publisher
from django_sockets.delivery.events import LATE, MISSED, VERSION
from django_sockets.delivery.sequence import PublisherBudget


class Reading:
    """A channel "room", its publisher, and the calls that `read_batch` makes."""

    def __init__(self) -> None:
        self.channels = {"room": Channel(PublisherBudget()), "other": Channel(PublisherBudget())}
        self.publisher = Publisher()
        self.foreign: list[str] = []
        self.dropped = 0

    def message(self, payload: bytes, channel: str = "room") -> tuple[str, bytes]:
        return channel, self.publisher.headers([channel], True)[0] + payload

    def read(self, *batch: tuple[str, bytes]) -> list[Segment]:
        return read_batch(batch, self.channels, 0.0, self)

    def poison(self, channel: str) -> None:
        self.foreign.append(channel)

    def late(self) -> None:
        self.dropped += 1


def shape(segments: list[Segment]) -> list[tuple[str | None, list[list[bytes]]]]:
    """The reason of each gap, and the payloads of the runs after it."""
    return [
        (gap and gap.reason, [[one.payload for one in run.messages] for run in runs])
        for gap, runs in segments
    ]


def test_a_gap_stands_before_the_first_message_after_the_missing_one() -> None:
    reading = Reading()
    one, _lost, three, four = (reading.message(b"%d" % n) for n in range(4))
    assert shape(reading.read(one, three, four)) == [
        (None, [[b"0"]]),
        (MISSED, [[b"2", b"3"]]),
    ]


def test_a_late_message_is_dropped_and_counted_and_is_a_gap_if_it_was_never_delivered() -> None:
    reading = Reading()
    reading.message(b"before")
    early, second = reading.message(b"1"), reading.message(b"2")
    assert shape(reading.read(second, early, early)) == [(None, [[b"2"]]), (LATE, [])]
    assert reading.dropped == 2


def test_a_newer_version_is_a_gap_and_foreign_payloads_are_skipped() -> None:
    reading = Reading()
    name, first = reading.message(b"1")
    newer = first[:3] + b"\x02" + first[4:]
    segments = reading.read((name, b"foreign"), (name, newer), (name, first))
    assert shape(segments) == [(None, []), (VERSION, [[b"1"]])]
    assert reading.foreign == ["room"]


def test_a_run_has_one_channel_and_is_bounded_in_messages_and_bytes() -> None:
    reading = Reading()
    small = [reading.message(b"x") for _ in range(RUN_MESSAGES + 1)]
    ((_, runs),) = reading.read(*small, reading.message(b"y", "other"), ("unknown", b""))
    assert [len(run.messages) for run in runs] == [RUN_MESSAGES, 1, 1]
    large = [reading.message(b"x" * RUN_BYTES) for _ in range(3)]
    segments = reading.read(*large)
    assert [[len(run.messages) for run in runs] for _, runs in segments] == [[1, 1], [1]]
