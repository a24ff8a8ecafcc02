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
from django_sockets.delivery.envelope import Publisher, unpack_kept
from django_sockets.delivery.sequence import PublisherBudget, SequenceTracker, Verdict
from django_sockets.history import (
    HistoryReply,
    HistoryRule,
    HistoryStatus,
    Position,
    position_field,
    position_of,
    tag_of,
    with_field,
)
from django_sockets.hub.history import HISTORY, HistoryReader, Live

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
        self.seen: dict[bytes, int] = {}
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
            self.reader.lost("link", handed_over=handed_over)

    def probe(self) -> None:
        """The id of the server is compared, as far as it is known on this connection."""
        if self.link is not None:
            if self.known_id not in (b"", self.link.history.id):
                self.link = None
            else:
                self.known_id = self.link.history.id

    def receive(self, message: bytes) -> None:
        (publisher, counter, *_), link = unpack_kept(message)
        verdict = self.reader.live(
            link, tag_of(message), lambda: counter <= self.seen.get(publisher, 0)
        )
        if verdict is Live.TAKE:
            self.take(message)

    def take(self, message: bytes) -> None:
        (publisher, counter, previous, age_us, _, _, payload), _ = unpack_kept(message)
        verdict = self.tracker.observe(publisher, counter, previous, age_us, time.monotonic())
        self.seen[publisher] = max(counter, self.seen.get(publisher, 0))
        if verdict in (Verdict.GAP, Verdict.LATE):
            self.gaps.append(next(self.clock))
        if verdict in (Verdict.GAP, Verdict.DELIVER):
            self.heard.append(payload)

    def answer(self, max_bytes: int = 10**6) -> None:
        """The server answers the open read."""
        if not self.reader.reading or self.link is None:
            return
        if self.link is not self.primary:
            self.link = None  # READONLY
            return
        history = self.link.history
        found = history.read(ROOM, self.reader.start, self.rule, 0, self.rule.messages, max_bytes)
        reply = HistoryReply(found.status, found.position, found.messages, self.link.former)
        if self.known_id not in (b"", history.id):
            self.link = None  # See `LinkReads`.
            return
        self.known_id = history.id
        healed = self.reader.reply(reply)
        if healed.gap is not None:
            self.gaps.append(next(self.clock))
            self.tracker.gap_signalled(time.monotonic())
        for message in healed.messages:
            self.take(message)
        assert healed.read == self.reader.reading

    def settle(self) -> None:
        """No more faults: what is missing now is missing for good."""
        self.connect()
        self.probe()
        self.connect()
        for _ in range(2):
            while self.reader.reading:
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
        assert world.seen[publisher.id] > 0


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
    assert world.reader.reply(HistoryReply.unavailable("no")).gap == HISTORY
    world.publish()
    assert world.heard[-1] == b"2"
    assert world.reader.position is not None
    assert world.reader.position.offset == 3
    world.publish()
    assert world.heard[-1] == b"3"


def test_since_and_the_last_messages_begin_with_a_reply() -> None:
    world = World(100)
    for _ in range(5):
        world.publish()
    history = world.primary.history
    everything = history.read(ROOM, 5, world.rule, 0, 100)
    start = Position(everything.position.epoch, 0, bytes(16), history.id)
    for begin, count in ((start, 5), (2, 2), (None, 0)):
        reader = HistoryReader(begin)
        healed = reader.reply(history.read(ROOM, begin, world.rule, 0, 100))
        assert (healed.gap, len(healed.messages)) == (None, count)
        assert reader.position == everything.position
    reader = HistoryReader(Position(b"another!", 0, bytes(16), history.id))
    healed = reader.reply(history.read(ROOM, reader.start, world.rule, 0, 100))
    assert (healed.gap, healed.messages) == (HISTORY, ())
    assert reader.position == everything.position


def test_a_reply_that_nobody_waits_for_changes_nothing() -> None:
    world = World(100)
    before = world.reader.position
    healed = world.reader.reply(HistoryReply(HistoryStatus.BROKEN))
    assert (healed.gap, healed.messages, healed.read) == (None, (), False)
    assert world.reader.position == before


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
    reader.reply(HistoryReply(HistoryStatus.WHOLE, AT))
    return reader


def never() -> bool:
    return False


def following(count: int, before: bytes = AT.tag) -> tuple[bytes, ...]:
    """Messages that follow on offset 5."""
    publisher = Publisher()
    found = []
    for offset in range(6, 6 + count):
        (header,) = publisher.headers([ROOM], is_text=False)
        found.append(with_field(header) + position_field(E1, offset, before))
        before = tag_of(header)
    return tuple(found)


def test_the_next_message_is_taken_and_moves_the_position() -> None:
    reader = at_five()
    assert reader.live((E1, 6, AT.tag), b"tag of message 6", never) is Live.TAKE
    assert reader.position == Position(E1, 6, b"tag of message 6", LINE)


@pytest.mark.parametrize(
    "link",
    [
        (E1, 7, b"tag of message 6"),
        (E1, 6, b"of another serve"),
        (E1, 4, b"of another serve"),
        (E2, 2, b"some other tag.."),
        (E2, 1, b"some other tag.."),
    ],
)
def test_a_message_that_does_not_follow_makes_a_read(link: tuple[bytes, int, bytes]) -> None:
    reader = at_five()
    assert reader.live(link, b"tag of message x", never) is Live.READ
    assert (reader.reading, reader.start, reader.position) == (True, AT, AT)
    # Until the reply, nothing else is taken, except messages that were not kept.
    assert reader.live((E1, 6, AT.tag), b"tag of message 6", never) is Live.DROP
    assert reader.live(None, b"tag of message y", never) is Live.TAKE


def test_a_repeated_message_makes_no_read() -> None:
    reader = at_five()
    assert reader.live((E1, 4, b"tag of message 3"), b"t" * 16, lambda: True) is Live.DROP
    assert not reader.reading


def test_the_first_message_of_a_new_epoch_is_taken() -> None:
    reader = at_five()
    assert reader.live((E2, 1, bytes(16)), b"t" * 16, never) is Live.TAKE
    assert reader.position == Position(E2, 1, b"t" * 16, LINE)


@pytest.mark.parametrize("start", [None, 3])
def test_a_loss_before_the_first_reply_is_a_gap(start: int | None) -> None:
    reader = HistoryReader(start)
    assert not reader.lost("link", handed_over=False)
    assert reader.reply(HistoryReply(HistoryStatus.WHOLE, AT)).gap == "link"


def test_a_loss_without_a_position_is_a_gap() -> None:
    reader = HistoryReader()
    reader.reply(HistoryReply.unavailable("no"))
    assert reader.lost("link", handed_over=False)
    assert reader.start is None
    assert reader.reply(HistoryReply(HistoryStatus.WHOLE, AT)).gap == "link"


def test_a_loss_while_a_read_is_open_goes_on_with_it() -> None:
    reader = at_five()
    assert reader.lost("link", handed_over=False)
    assert not reader.lost("link", handed_over=False)
    assert reader.reply(HistoryReply(HistoryStatus.WHOLE, AT)).gap is None


@pytest.mark.parametrize("status", [HistoryStatus.WHOLE, HistoryStatus.CUT])
@pytest.mark.parametrize("case", ["first", "hole"])
def test_messages_that_do_not_follow_on_each_other_are_a_gap(
    status: HistoryStatus, case: str
) -> None:
    reader = at_five()
    reader.lost("link", handed_over=False)
    messages = following(3)
    if case == "hole":
        messages = (messages[0], messages[2])
    else:
        messages = following(3, before=b"of another serve")
    newest = position_of(messages[-1], LINE)
    healed = reader.reply(HistoryReply(status, newest, messages))
    if status is HistoryStatus.CUT:
        # The newest position is still unknown, and the gap stands before it.
        assert (healed.gap, healed.messages, healed.read) == (None, (), True)
        assert reader.start is None
        healed = reader.reply(HistoryReply(HistoryStatus.WHOLE, newest))
    assert (healed.gap, healed.messages, healed.read) == (HISTORY, (), False)
    assert reader.position == newest


def test_a_page_is_followed_by_the_next_one() -> None:
    reader = at_five()
    reader.lost("link", handed_over=False)
    messages = following(4)
    behind = position_of(messages[1], LINE)
    healed = reader.reply(HistoryReply(HistoryStatus.CUT, behind, messages[:2]))
    assert (healed.gap, healed.messages, healed.read) == (None, messages[:2], True)
    assert reader.start == behind
    newest = position_of(messages[3], LINE)
    healed = reader.reply(HistoryReply(HistoryStatus.WHOLE, newest, messages[2:]))
    assert (healed.gap, healed.messages, healed.read) == (None, messages[2:], False)
    assert reader.position == newest
