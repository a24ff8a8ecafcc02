"""A channel is healed from its history, or the gap is signalled: a model of servers and faults."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_sockets.backends.memory_history import MemoryHistory
from django_sockets.delivery.envelope import Publisher, unpack
from django_sockets.delivery.events import HISTORY
from django_sockets.delivery.sequence import PublisherBudget, SequenceTracker, Verdict
from django_sockets.history import (
    HistoryReply,
    HistoryRule,
    HistoryStatus,
    Position,
    Start,
    position_field,
    position_of,
    tag_of,
    with_field,
)
from django_sockets.hub.history.reader import Healed, HistoryReader

ROOM = "room"
NONE = bytes(8)


class Server:
    """A server with the history of one channel."""

    def __init__(self, ids: itertools.count[int]) -> None:
        self.ids = ids
        self.history = MemoryHistory()
        self.history.id = self._new_id()
        self.former = NONE

    def _new_id(self) -> bytes:
        return next(self.ids).to_bytes(8, "big")

    def copy_from(self, other: Server) -> None:
        self.history, self.former = copy.deepcopy(other.history), other.former

    def promote(self) -> None:
        self.former, self.history.id = self.history.id, self._new_id()


class World:
    """Two servers, two publishers, and one process that reads the channel.

    Attributes:
        published: payload -> time of the publish, for messages that were acknowledged.
        heard: payloads in the order of their delivery.
        gaps: times of gaps.
    """

    def __init__(self, messages: int) -> None:
        ids = itertools.count(1)
        self.rule = HistoryRule(messages, 10**6)
        self.primary, self.other = Server(ids), Server(ids)
        self.other.copy_from(self.primary)
        self.publishers = [Publisher(), Publisher()]
        self.clock = itertools.count()
        self.published: dict[bytes, int] = {}
        self.heard: list[bytes] = []
        self.gaps: list[int] = []
        self.link: Server | None = self.primary
        self.known_id = b""
        self.reader = HistoryReader()
        self.tracker = SequenceTracker(PublisherBudget())
        self.start: Start = None
        self.reading = True
        self.answer()
        self.tracker.acknowledged(time.monotonic())

    # The servers

    def publish(self, publisher: int = 0, lost: bool = False, kept: bool = True) -> None:
        (header,) = self.publishers[publisher].headers([ROOM], is_text=False)
        payload = b"%d" % len(self.published)
        if kept:
            message = self.primary.history.keep(ROOM, header, payload, self.rule, 0)
        else:
            self.primary.history.remove(ROOM)
            message = header + payload
        self.published[payload] = next(self.clock)
        if self.link is not None and not lost:
            self.receive(message)

    def evict(self) -> None:
        self.primary.history.remove(ROOM)

    def replicate(self) -> None:
        self.other.copy_from(self.primary)

    def promote(self, in_place: bool) -> None:
        """The replica takes over; the former primary becomes its replica, perhaps in place."""
        on_former = self.link is self.primary
        self.primary, self.other = self.other, self.primary
        self.primary.promote()
        self.other.copy_from(self.primary)
        if on_former and not in_place:
            self.link = None

    # The process

    def cut(self) -> None:
        self.link = None

    def connect(self, handed_over: bool = False) -> None:
        if self.link is None:
            self.link = self.primary
            self.known_id = b""
            if not self.reader.lost(handed_over=handed_over):
                self.gap()
            self.read()

    def probe(self) -> None:
        """The id of the server is compared, as far as it is known on this connection."""
        if self.link is not None:
            if self.known_id not in (b"", self.link.history.id):
                self.link = None
            else:
                self.known_id = self.link.history.id

    def receive(self, message: bytes) -> None:
        taken = self.reader.take(message, self.tracker)
        if taken is None:
            if self.reader.incomplete:
                self.reader.incomplete = False
                self.read()
            return
        publisher, counter, previous, age_us, _, _, payload, _ = taken
        verdict = self.tracker.observe(publisher, counter, previous, age_us, time.monotonic())
        if verdict in (Verdict.GAP, Verdict.LATE):
            self.gaps.append(next(self.clock))
        if verdict in (Verdict.GAP, Verdict.DELIVER):
            self.heard.append(payload)

    def gap(self) -> None:
        self.gaps.append(next(self.clock))
        self.tracker.gap_signalled(time.monotonic())

    def read(self) -> None:
        """Open a read if one is needed."""
        if not self.reading and (self.reader.healing or self.reader.unplaced):
            self.reading = True
            self.start = self.reader.position if self.reader.healing else None

    def answer(self, max_bytes: int = 10**6) -> None:
        """The server answers the open read."""
        if not self.reading or self.link is None:
            return
        if self.link is not self.primary:
            self.link = None  # READONLY
            return
        history = self.link.history
        found = history.read(ROOM, self.start, self.rule, 0, self.rule.messages, max_bytes)
        reply = HistoryReply(found.status, found.position, found.messages, self.link.former)
        if self.known_id not in (b"", history.id):
            self.link = None  # See `LinkReads`.
            return
        self.known_id = history.id
        healed = self.reader.reply(reply, self.start)
        if healed.gap is not None:
            self.gap()
        for message in healed.messages:
            self.receive(message)
            assert not self.reader.healing
        self.reading = healed.more
        if healed.more:
            self.reader.read_on()
            self.start = found.position
        self.read()

    def settle(self) -> None:
        """No more faults: what is missing now is missing for good."""
        self.connect()
        self.probe()
        self.connect()
        for _ in range(2):
            while self.reading:
                self.connect()
                self.answer()
            self.publish(0)
            self.publish(1)

    def check(self) -> None:
        numbers = [int(payload) for payload in self.heard]
        assert len(set(numbers)) == len(numbers), "repeated"
        # Both publishers number their messages in the order of the calls.
        last_gap = max(self.gaps, default=-1)
        for payload, at in self.published.items():
            assert payload in set(self.heard) or at < last_gap, f"{payload!r} is lost in silence"


def apply(world: World, steps: Sequence[tuple[str, Any]]) -> None:
    for name, argument in steps:
        getattr(world, name)(**argument)


def step(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


PUBLISHER = st.sampled_from([0, 1])
SIZES = st.sampled_from([1, 150, 10**6])
HEALABLE = [
    step("publish", publisher=PUBLISHER),
    step("publish", publisher=PUBLISHER, lost=st.booleans()),
    step("answer", max_bytes=SIZES),
    step("cut"),
    step("connect"),
    step("probe"),
    step("replicate"),
]
FAULTS = [
    *HEALABLE,
    step("publish", publisher=PUBLISHER, kept=st.just(False), lost=st.booleans()),
    step("evict"),
    step("promote", in_place=st.booleans()),
    step("connect", handed_over=st.just(True)),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(HEALABLE), max_size=40))
def test_what_the_server_still_has_is_neither_lost_nor_a_gap(steps: list[tuple[str, Any]]) -> None:
    world = World(messages=1000)
    apply(world, steps)
    world.settle()
    world.check()
    assert world.gaps == []
    assert len(world.heard) == len(world.published)
    for publisher in world.publishers:
        assert world.tracker.has_received(publisher.id, 1)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(FAULTS), max_size=40), st.sampled_from([1, 3, 1000]))
def test_every_loss_lies_inside_a_gap_and_nothing_is_repeated(
    steps: list[tuple[str, Any]], messages: int
) -> None:
    world = World(messages)
    apply(world, steps)
    world.settle()
    world.check()


# Named cases


def test_the_first_message_of_a_publisher_that_the_network_dropped_is_healed() -> None:
    world = World(100)
    world.publish(lost=True)
    world.publish()
    world.answer()
    assert (world.heard, world.gaps) == ([b"0", b"1"], [])


def test_offsets_that_a_promoted_server_gives_out_again_are_a_gap() -> None:
    world = World(100)
    world.publish()
    world.replicate()
    world.cut()
    for _ in range(5):
        world.publish()
    world.promote(in_place=False)
    for _ in range(5):
        world.publish()
    world.connect()
    world.answer()
    assert len(world.gaps) == 1
    world.publish()
    assert world.heard == [b"0", b"11"]


def test_a_primary_that_is_demoted_in_place_is_noticed_by_the_next_message() -> None:
    world = World(100)
    world.publish()
    world.replicate()
    world.publish()
    world.promote(in_place=True)
    world.publish()
    world.connect()
    world.answer()
    world.connect()
    world.answer()
    assert len(world.gaps) == 1
    world.publish()
    assert world.heard == [b"0", b"1", b"3"]


def test_a_slot_that_a_live_server_gave_away_is_no_gap_although_the_id_is_another_one() -> None:
    for handed_over in (True, False):
        world = World(100)
        world.publish()
        world.cut()
        world.publish()
        world.primary.history.id = b"target's"
        world.connect(handed_over=handed_over)
        world.answer()
        assert len(world.gaps) == (0 if handed_over else 1)


def test_a_takeover_is_a_gap_although_the_former_server_said_goodbye() -> None:
    world = World(100)
    world.publish()
    world.replicate()
    world.cut()
    world.publish()  # Acknowledged, and lost with the takeover.
    world.promote(in_place=False)
    world.publish(1)
    world.connect(handed_over=True)
    world.answer()
    assert len(world.gaps) == 1


def test_an_unavailable_history_is_a_gap_and_the_next_message_gives_the_position() -> None:
    world = World(100)
    world.publish()
    world.cut()
    world.publish()
    world.connect()
    assert world.reader.reply(HistoryReply.unavailable("no"), world.start).gap == HISTORY
    world.reading = False
    world.publish()
    assert world.heard[-1] == b"2"
    assert world.reader.position is not None
    assert world.reader.position.offset == 3
    world.publish()
    assert world.heard[-1] == b"3"


def test_a_reply_with_nothing_new_changes_nothing() -> None:
    world = World(100)
    before = world.reader.position
    assert world.reader.reply(HistoryReply(HistoryStatus.BROKEN), before) == Healed()
    assert world.reader.reply(HistoryReply(HistoryStatus.WHOLE, before), None) == Healed()
    assert (world.reader.position, world.reader.healing) == (before, False)


def test_a_reply_from_a_lower_offset_heals_and_one_from_a_higher_offset_does_not() -> None:
    world = World(100)
    history = world.primary.history
    for _ in range(3):
        world.publish()
    low = world.reader.position
    for _ in range(3):
        world.publish()
    here = world.reader.position
    world.cut()
    world.publish()
    high = history.read(ROOM, None, world.rule, 0, 100).position
    world.publish()
    world.reader.lost(handed_over=False)
    healed = world.reader.reply(history.read(ROOM, high, world.rule, 0, 100), high)
    assert (healed, world.reader.healing, world.reader.position) == (Healed(), True, here)
    healed = world.reader.reply(history.read(ROOM, low, world.rule, 0, 100), low)
    assert [unpack(message)[6] for message in healed.messages] == [b"6", b"7"]
    assert not world.reader.healing


def test_a_reply_that_is_ahead_of_the_stream_heals_what_the_network_dropped() -> None:
    world = World(100)
    world.publish()
    world.publish(lost=True)
    world.reader.unplaced = True
    world.read()
    world.answer()
    assert world.reader.healing
    world.answer()
    assert (world.heard, world.gaps) == ([b"0", b"1"], [])


def test_an_evicted_history_is_no_gap_on_an_unbroken_link() -> None:
    world = World(100)
    world.publish()
    world.evict()
    world.reader.unplaced = True
    world.read()
    world.answer()
    world.publish()
    assert (world.heard, world.gaps) == ([b"0", b"1"], [])


def test_a_slot_given_away_after_a_lost_link_does_not_excuse_another_history() -> None:
    world = World(100)
    world.publish()
    world.cut()
    world.publish()
    world.primary.history.id = b"another1"
    world.reader.lost(handed_over=False)
    world.connect(handed_over=True)
    world.answer()
    assert len(world.gaps) == 1


def test_a_new_history_id_of_the_same_history_is_taken() -> None:
    world = World(100)
    world.publish()
    world.primary.history.id = b"renamed!"
    world.known_id = b"renamed!"
    world.reader.renamed(b"renamed!")
    world.cut()
    world.publish()
    world.connect()
    world.answer()
    assert (world.heard, world.gaps) == ([b"0", b"1"], [])


# Single decisions

E1, E2 = b"epoch  1", b"epoch  2"
LINE = b"history1"
AT = Position(E1, 5, b"tag of message 5", LINE)


def at_five() -> HistoryReader:
    """A reader whose last message has the offset 5."""
    reader = HistoryReader()
    reader.reply(HistoryReply(HistoryStatus.WHOLE, AT), None)
    return reader


def message(epoch: bytes, offset: int, before: bytes) -> bytes:
    (header,) = Publisher().headers([ROOM], is_text=False)
    return with_field(header) + position_field(epoch, offset, before)


def following(count: int, before: bytes = AT.tag) -> tuple[bytes, ...]:
    """Messages that follow on offset 5."""
    found = []
    for offset in range(6, 6 + count):
        found.append(message(E1, offset, before))
        before = tag_of(found[-1])
    return tuple(found)


def new_tracker() -> SequenceTracker:
    return SequenceTracker(PublisherBudget())


def test_the_next_message_is_taken_and_moves_the_position() -> None:
    reader = at_five()
    (six,) = following(1)
    taken = reader.take(six, new_tracker())
    assert taken is not None
    assert taken[7] == (E1, b"6", tag_of(six), LINE)
    assert reader.position == Position(E1, 6, tag_of(six), LINE)


def test_a_message_that_was_not_kept_does_not_move_the_position() -> None:
    reader = at_five()
    (header,) = Publisher().headers([ROOM], is_text=False)
    taken = reader.take(header + b"payload", new_tracker())
    assert taken is not None
    assert taken[6:] == (b"payload", None)
    assert reader.position == AT


@pytest.mark.parametrize(
    "link",
    [
        (E1, 7, b"tag of message 6"),
        (E1, 6, b"of another serve"),
        (E1, 7, AT.tag),
        (E2, 6, AT.tag),
        (E1, 4, b"of another serve"),
        (E2, 2, b"some other tag.."),
        (E2, 1, b"some other tag.."),
    ],
)
def test_a_message_that_does_not_follow_makes_a_read(link: tuple[bytes, int, bytes]) -> None:
    reader, tracker = at_five(), new_tracker()
    assert reader.take(message(*link), tracker) is None
    assert (reader.healing, reader.incomplete, reader.position) == (True, True, AT)
    # Until the reply, nothing else is taken, except messages that were not kept.
    assert reader.take(following(1)[0], tracker) is None
    (header,) = Publisher().headers([ROOM], is_text=False)
    assert reader.take(header, tracker) is not None


def test_a_repeated_message_makes_no_read() -> None:
    reader, tracker = at_five(), new_tracker()
    old = message(E1, 4, b"tag of message 3")
    tracker.observe(*unpack(old)[:3])
    assert reader.take(old, tracker) is not None
    assert (reader.healing, reader.position) == (False, AT)


def test_the_first_message_of_a_new_epoch_is_taken_on_an_unbroken_link() -> None:
    reader = at_five()
    first = message(E2, 1, bytes(16))
    assert reader.take(first, new_tracker()) is not None
    assert reader.position == Position(E2, 1, tag_of(first), LINE)


@pytest.mark.parametrize("cut", [False, True])
def test_a_whole_reply_heals(cut: bool) -> None:
    reader, tracker, messages = at_five(), new_tracker(), following(3)
    assert reader.lost(handed_over=False)
    end = position_of(messages[-1], LINE)
    assert end is not None
    status = HistoryStatus.CUT if cut else HistoryStatus.WHOLE
    healed = reader.reply(HistoryReply(status, end, messages), AT)
    assert healed == Healed(None, messages, cut)
    for one in healed.messages:
        assert reader.take(one, tracker) is not None
    assert (reader.position, reader.healing) == (end, False)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("damage", ["order", "start", "hole", "field"])
def test_a_reply_with_a_broken_chain_is_a_gap(damage: str, cut: bool) -> None:
    reader, messages = at_five(), list(following(3))
    assert reader.lost(handed_over=False)
    end = position_of(messages[-1], LINE)
    if damage == "order":
        messages.reverse()
    elif damage == "start":
        messages = list(following(3, b"of another serve"))
    elif damage == "hole":
        del messages[1]
    else:
        messages[1] = b"".join(Publisher().headers([ROOM], is_text=False))
    status = HistoryStatus.CUT if cut else HistoryStatus.WHOLE
    healed = reader.reply(HistoryReply(status, end, tuple(messages)), AT)
    assert healed == Healed(HISTORY)
    # After a reply that is not the last one, the position is unknown and has to be read.
    assert reader.position == (None if cut else end)
    assert reader.unplaced is cut


def test_a_loss_without_a_position_is_a_gap_at_once() -> None:
    reader = HistoryReader()
    assert not reader.lost(handed_over=False)
    assert (reader.healing, reader.unplaced) == (False, True)
