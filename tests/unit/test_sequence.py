"""The tracker finds every hole, gaps cover earlier messages only, and its memory is bounded."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_sockets.delivery.envelope import RECENT_MESSAGES, Publisher, published_at, unpack
from django_sockets.delivery.sequence import PublisherBudget, SequenceTracker, Verdict

DROP, DELIVER, GAP, LATE = Verdict.DROP, Verdict.DELIVER, Verdict.GAP, Verdict.LATE


def new_tracker(subscribed_at: float | None = 0.0, per_channel: int = 256) -> SequenceTracker:
    tracker = SequenceTracker(PublisherBudget(per_channel))
    if subscribed_at is not None:
        tracker.acknowledged(subscribed_at)
    return tracker


class Published:
    """Messages of one publisher on one channel, with the counters and ages that they carry."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.counter = 0
        self.at: float | None = None

    def at_time(self, now: float) -> tuple[bytes, int, int, int | None]:
        previous, self.counter = self.counter, self.counter + 1
        age_us = None if self.at is None else int((now - self.at) * 1e6)
        self.at = now
        return self.name, self.counter, previous, age_us


# What a gap covers


def test_a_hole_behind_a_gap_is_another_gap() -> None:
    tracker, p = new_tracker(), Published(b"p")
    assert tracker.observe(*p.at_time(1), 1.1) == DELIVER
    tracker.gap_signalled(2)
    p.at_time(3)  # Published after the gap, and lost.
    assert tracker.observe(*p.at_time(4), 4.1) == GAP
    assert tracker.observe(*p.at_time(5), 5.1) == DELIVER


def test_what_was_published_before_a_gap_is_covered_by_it() -> None:
    tracker, p = new_tracker(), Published(b"p")
    assert tracker.observe(*p.at_time(1), 1.1) == DELIVER
    for lost in (1.2, 1.5, 1.9):
        p.at_time(lost)
    tracker.gap_signalled(2)
    assert tracker.observe(*p.at_time(4), 4.05) == DELIVER


def test_a_gap_before_the_last_message_covers_no_hole_after_it() -> None:
    """The age of the lost message does not matter: the gap must be at the hole."""
    tracker, p = new_tracker(), Published(b"p")
    first, lost, third = p.at_time(1), p.at_time(1.1), p.at_time(1.2)
    del lost
    tracker.gap_signalled(2)
    assert tracker.observe(*first, 3) == DELIVER
    assert tracker.observe(*third, 3) == GAP


def test_a_gap_without_a_loss_causes_no_second_gap() -> None:
    tracker, p, q = new_tracker(), Published(b"p"), Published(b"q")
    for publisher in (p, q):
        assert tracker.observe(*publisher.at_time(1), 1) == DELIVER
    tracker.gap_signalled(2)
    for publisher in (p, q):
        assert tracker.observe(*publisher.at_time(3), 3) == DELIVER


def test_a_hole_of_unknown_age_behind_a_gap_is_another_gap() -> None:
    tracker = new_tracker()
    assert tracker.observe(b"p", 1, 0, None, 1) == DELIVER
    tracker.gap_signalled(2)
    assert tracker.observe(b"p", 5, 4, None, 3) == GAP
    assert tracker.observe(b"p", 1, 0, None, 3) == DROP


# Publishers that are new to a subscription


def test_a_lost_first_message_is_a_gap() -> None:
    tracker, p = new_tracker(subscribed_at=10), Published(b"p")
    p.at_time(11)  # Lost.
    assert tracker.observe(*p.at_time(12), 12.001) == GAP
    assert tracker.observe(*p.at_time(13), 13.001) == DELIVER


@pytest.mark.parametrize("microseconds_after", [1, 100, 10_000])
def test_a_first_message_right_behind_the_subscription_counts(microseconds_after: int) -> None:
    tracker, p = new_tracker(subscribed_at=10), Published(b"p")
    p.at_time(10 + microseconds_after / 1e6)
    second = 10 + 2 * microseconds_after / 1e6
    assert tracker.observe(*p.at_time(second), second) == GAP


def test_messages_published_before_the_subscription_cause_no_gap() -> None:
    tracker, p = new_tracker(subscribed_at=10), Published(b"p")
    p.at_time(9.5)
    assert tracker.observe(*p.at_time(12), 12.001) == DELIVER


def test_a_subscription_that_is_not_acknowledged_has_missed_nothing() -> None:
    tracker, p = new_tracker(subscribed_at=None), Published(b"p")
    p.at_time(9.5)
    assert tracker.observe(*p.at_time(12), 12.001) == DELIVER


def test_a_new_publisher_of_unknown_age_is_taken_as_it_comes() -> None:
    tracker = new_tracker(subscribed_at=10)
    assert tracker.observe(b"p", 5, 4, None, 12) == DELIVER
    assert tracker.observe(b"p", 6, 5, None, 12) == DELIVER


def test_a_gap_covers_the_first_message_of_a_new_publisher() -> None:
    tracker, p = new_tracker(subscribed_at=10), Published(b"p")
    p.at_time(11)
    tracker.gap_signalled(12)
    assert tracker.observe(*p.at_time(13), 13.001) == DELIVER


# Messages of the same process


def test_a_message_of_this_process_is_dated_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that was delayed by a busy loop must not cause a gap."""
    now = [9.9]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    tracker, publisher = new_tracker(subscribed_at=10), Publisher()
    publisher.headers(["room"], False)
    now[0] = 10.1
    second = unpack(publisher.headers(["room"], False)[0])[:4]
    assert tracker.observe(*second, 15) == DELIVER
    for counter in (0, 3, 3 - RECENT_MESSAGES):
        assert published_at(publisher.id, counter) is None
    assert published_at(b"another", 1) is None


# All of it, against a model


class Model:
    """A publisher on a channel, from both ends: what it published, and what a reader was told."""

    told_at = 0.0
    """All that any publisher had published before this time is covered by a gap."""
    told = True
    """A gap has been signalled since the last message delivered."""
    models: Sequence[Model] = ()

    def __init__(self, tracker: SequenceTracker, name: bytes) -> None:
        self.tracker = tracker
        self.name = name
        self.delivered: list[int] = []

    def receive(self, counter: int, now: float, published_at: dict[int, float]) -> None:
        age_us = None
        if counter > 1:
            age_us = int((published_at[counter] - published_at[counter - 1]) * 1e6)
        verdict = self.tracker.observe(self.name, counter, counter - 1, age_us, now)
        if verdict in (GAP, LATE):
            self.told_of_gap(now)
        if verdict in (DELIVER, GAP):
            last = self.delivered[-1] if self.delivered else 0
            assert counter > last, "delivered twice or late"
            silent = [n for n in range(last + 1, counter) if published_at[n] > self.told_at]
            assert not silent, f"{silent} lost silently"
            assert self.told or counter == last + 1, "a hole without a gap in its place"
            self.delivered.append(counter)
            self.told = False

    def told_of_gap(self, now: float) -> None:
        Model.told_at = now
        for model in self.models:
            model.told = True


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 30), per_channel=st.sampled_from([4, 256]))
def test_no_stream_gets_past_the_chain_in_disorder(seed: int, count: int, per_channel: int) -> None:
    """Each message takes up to 5 units of time to arrive; some are lost, repeated or late."""
    rng = random.Random(seed)
    tracker = new_tracker(subscribed_at=1, per_channel=per_channel)
    models = [Model(tracker, name) for name in (b"p", b"q")]
    Model.models, Model.told_at = models, 0.0
    step = rng.choice((0.5, 10))
    published_at = {n: 2 + n * step for n in range(1, count + 1)}
    stream = [(model, n) for n in range(1, count + 1) for model in models]
    for _ in range(rng.randint(0, 8)):
        if not stream:
            break
        i = rng.randrange(len(stream))
        fault = rng.choice(("drop", "repeat", "move"))
        if fault == "drop":
            del stream[i]
        elif fault == "repeat":
            stream.insert(rng.randint(i, len(stream)), stream[i])
        else:
            stream.insert(rng.randint(0, len(stream)), stream.pop(i))
    now = 1.0
    for model, n in stream:
        now = max(now, published_at[n] + rng.uniform(0, 5))
        if rng.random() < 0.1:
            tracker.gap_signalled(now)
            model.told_of_gap(now)
        model.receive(n, now, published_at)


def test_a_healthy_stream_of_many_publishers_has_no_gap() -> None:
    rng = random.Random(1)
    tracker = new_tracker()
    publishers = [Published(b"%d" % number) for number in range(20)]
    for step in range(5000):
        publisher = rng.choice(publishers)
        now = 1 + step / 1000
        assert tracker.observe(*publisher.at_time(now), now + 0.0005) == DELIVER


def test_what_precedes_the_first_message_seen_is_dropped_and_signalled_once() -> None:
    tracker = new_tracker()
    assert tracker.observe(b"p", 5, 4) == DELIVER
    assert tracker.observe(b"p", 4, 3) == LATE
    assert tracker.observe(b"p", 4, 3) == DROP
    assert tracker.observe(b"p", 5, 4) == DROP
    assert tracker.observe(b"p", 6, 5) == DELIVER


def test_an_unknown_history_causes_no_gap() -> None:
    tracker = new_tracker()
    assert tracker.observe(b"p", 1, 0) == DELIVER
    assert tracker.observe(b"p", 9, 0) == DELIVER
    assert tracker.observe(b"p", 11, 10) == GAP


# How much is remembered


def test_more_publishers_than_are_remembered_cause_no_gap() -> None:
    tracker = new_tracker(per_channel=4)
    publishers = [Published(b"%d" % number) for number in range(10)]
    for step in range(500):
        now = 1 + step / 100
        assert tracker.observe(*publishers[step % 10].at_time(now), now + 0.0005) == DELIVER


def test_a_forgotten_publisher_that_lost_a_message_lately_still_tells() -> None:
    tracker = new_tracker(per_channel=4)
    p, others = Published(b"p"), [Published(b"%d" % number) for number in range(10)]
    assert tracker.observe(*p.at_time(1), 1) == DELIVER
    for step, other in enumerate(others):
        assert tracker.observe(*other.at_time(2 + step), 2 + step) == DELIVER
    p.at_time(20)  # Lost.
    assert tracker.observe(*p.at_time(21), 21) == GAP


def test_short_lived_publishers_take_a_bounded_amount_of_memory() -> None:
    tracker = new_tracker()
    for number in range(1, 2000):
        assert tracker.observe(number.to_bytes(8, "big"), 5, 4, None, number) == DELIVER
        assert tracker.observe(number.to_bytes(8, "big"), 6, 5, None, number) == DELIVER
    tables = [tracker._others or {}, tracker._older or {}, tracker._first or {}]
    assert sum(map(len, tables[:2])) <= 256
    assert len(tables[2]) <= 257
    held = sum(map(sys.getsizeof, tables)) + sum(41 + 28 for table in tables for _ in table)
    assert held < 80 * 1024


def test_all_channels_share_what_a_hub_may_remember() -> None:
    channels: list[int] = []
    memory = PublisherBudget(per_channel=256, channels=channels)
    assert memory.share == 256
    channels.extend(range(1024))
    assert memory.share == 64
    channels.extend(range(1_000_000))
    assert memory.share == 4
