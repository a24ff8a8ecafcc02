"""The reader of a connection handles large, partial and unexpected input."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from typing import Any

import hiredis
import pytest

from django_sockets import SubscribeError
from django_sockets.backends.client import subscription_state
from django_sockets.backends.client.commands import PLAIN
from django_sockets.backends.client.connection import Connection, ConnectionLost
from django_sockets.backends.client.deadlines import Backoff, await_reply
from django_sockets.backends.client.identity import PRIMARY, Identity
from django_sockets.backends.client.node import Node
from django_sockets.backends.redis import SingleNodeBroker
from django_sockets.errors import ConnectError
from django_sockets.testing.contract.base import RecordingSink
from django_sockets.url import BrokerURL
from support.links import StandIn

PROBE = "probe"


def ack(*names: str, verb: bytes = b"subscribe") -> list[list[Any]]:
    return [[verb, name, 1] for name in names]


def message(name: str, payload: bytes) -> list[Any]:
    return [b"message", name, payload]


class ScriptedConnection(StandIn):
    """A link whose server is the test."""

    def __init__(self) -> None:
        self.chunks: asyncio.Queue[list[Any] | None] = asyncio.Queue()
        self.written: list[list[str]] = []
        self.wrote = asyncio.Event()
        self.probe = b""
        self.aborted = False

    async def read(self) -> list[Any]:
        chunk = await self.chunks.get()
        if chunk is None:
            raise ConnectionLost("gone")
        return chunk

    def write(self, data: bytes) -> None:
        parser = hiredis.Reader()
        parser.feed(data)
        while (command := parser.gets()) is not False:
            self.written.append([command[0].decode(), *map(self.short, command[1:])])
        self.wrote.set()

    def abort(self) -> None:
        self.aborted = True

    def short(self, name: bytes) -> str:
        if name.startswith(b"django_sockets:{"):
            return name[len(b"django_sockets:{") : -1].decode()
        self.probe = name
        return PROBE

    def long(self, name: str) -> bytes:
        return self.probe if name == PROBE else b"django_sockets:{%s}" % name.encode()

    def say(self, *replies: Any) -> None:
        """Send replies, which name channels, in one piece."""
        self.chunks.put_nowait(
            [
                [reply[0], self.long(reply[1]), *reply[2:]] if isinstance(reply, list) else reply
                for reply in replies
            ]
        )

    def close(self) -> None:
        self.chunks.put_nowait(None)

    async def commands(self, count: int) -> list[list[str]]:
        """The next commands, once there are so many."""
        while len(self.written) < count:
            self.wrote.clear()
            await asyncio.wait_for(self.wrote.wait(), 5)
        commands, self.written = self.written[:count], self.written[count:]
        return commands


class ScriptedBroker(SingleNodeBroker):
    """The redis backend's own code on links whose server is the test."""

    def __init__(self, sink: RecordingSink) -> None:
        self.links: asyncio.Queue[ScriptedConnection] = asyncio.Queue()
        self.refusing = False
        self.refused = asyncio.Event()
        self.allowed = 1000
        self.next_identity = Identity()
        url = BrokerURL.parse("redis://h?probe_interval_seconds=1000&dead_peer_seconds=1000")
        super().__init__(url, sink, open_connection=self._open)

    async def _open(self) -> Connection:
        if self.refusing or not self.allowed:
            self.refused.set()
            raise ConnectError(self.url, "refused")
        self.allowed -= 1
        link = ScriptedConnection()
        link.identity = self.next_identity
        self.links.put_nowait(link)
        return link

    async def next_link(self) -> ScriptedConnection:
        return await asyncio.wait_for(self.links.get(), 5)

    async def subscribed(self, *channels: str) -> ScriptedConnection:
        """Subscribe to the first channels, and return the link that was opened for it."""
        call = asyncio.create_task(self.subscribe(channels))
        link = await self.next_link()
        assert await link.commands(1) == [["SUBSCRIBE", *channels, PROBE]]
        link.say(*ack(*channels, PROBE))
        await call
        return link

    def rotate(self) -> asyncio.Task[None]:
        """Begin to replace the connections, as if they were too old."""
        self._node._start_rotation()
        assert self._node._rotating is not None
        return self._node._rotating

    def reset(self) -> None:
        """The server turned out to be a wrong one."""
        self._node.reset("wrong server")

    async def successor(self, *channels: str) -> ScriptedConnection:
        """The link that takes over, which was asked for these channels."""
        link = await self.next_link()
        assert await link.commands(1) == [["SUBSCRIBE", *channels, PROBE]]
        return link


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


@pytest.fixture
async def broker(sink: RecordingSink) -> AsyncIterator[ScriptedBroker]:
    broker = ScriptedBroker(sink)
    yield broker
    await broker.aclose()


def seen(sink: RecordingSink) -> Sequence[Any]:
    return [event[1:] if event[0] == "message" else event for event in sink.seen]


async def test_a_gap_stands_between_old_and_new_messages_of_one_read(
    broker: ScriptedBroker, sink: RecordingSink
) -> None:
    link = await broker.subscribed("a", "b")
    link.say(message("a", b"1"))
    link.close()
    link = await broker.next_link()
    await link.commands(1)
    # Everything in one read: each gap comes before the first message behind it, and not later
    # because another acknowledgement follows.
    link.say(
        *ack("a"),
        message("a", b"5"),
        *ack("b"),
        message("b", b"6"),
        *ack(PROBE),
        message("a", b"7"),
    )
    await sink.until("message", "a", b"7")
    assert seen(sink) == [
        ("a", b"1"),
        ("lost", ("a",)),
        ("a", b"5"),
        ("lost", ("b",)),
        ("b", b"6"),
        ("a", b"7"),
    ]


async def test_a_link_lost_before_the_gap_was_told_tells_it_later_and_once(
    broker: ScriptedBroker, sink: RecordingSink
) -> None:
    link = await broker.subscribed("a")
    link.close()
    for _ in range(3):  # Lost again before anything was acknowledged.
        link = await broker.next_link()
        link.close()
    link = await broker.next_link()
    await link.commands(1)
    link.say(*ack("a", PROBE), message("a", b"x"))
    await sink.until("message", "a", b"x")
    assert seen(sink) == [("lost", ("a",)), ("a", b"x")]


async def test_many_callers_at_once_are_one_command(broker: ScriptedBroker) -> None:
    link = await broker.subscribed("a")
    calls = [asyncio.create_task(broker.subscribe([c, "a"])) for c in "bcd"]
    assert await link.commands(1) == [["SUBSCRIBE", "b", "c", "d"]]
    link.say(*ack("b", "c"))
    await asyncio.gather(*calls[:2])
    assert not calls[2].done()
    link.say(*ack("d"))
    await calls[2]


async def test_callers_that_follow_each_other_are_one_command(
    broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a storm of connections each packet wakes the broker."""
    # A process that is not scheduled for some milliseconds would end the collecting.
    monkeypatch.setattr(subscription_state, "GATHERING_SECONDS", 60)
    link = await broker.subscribed("a")
    names = [f"room-{number}" for number in range(8)]
    calls = []
    for name in names:
        calls.append(asyncio.create_task(broker.subscribe([name])))
        await asyncio.sleep(0)
    assert await link.commands(1) == [["SUBSCRIBE", *names]]
    link.say(*ack(*names))
    await asyncio.gather(*calls)


async def test_a_caller_is_not_kept_waiting_by_others_that_go_on_coming(
    broker: ScriptedBroker,
) -> None:
    """With a new caller in each turn of the loop, the first callers are still served."""
    link = await broker.subscribed("a")
    calls = []
    while not link.written and len(calls) < 10_000:
        calls.append(asyncio.create_task(broker.subscribe([f"room-{len(calls)}"])))
        await asyncio.sleep(0)
    assert link.written[0][:3] == ["SUBSCRIBE", "room-0", "room-1"]
    await broker.aclose()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_a_change_of_mind_before_anything_was_sent_sends_nothing(
    broker: ScriptedBroker,
) -> None:
    link = await broker.subscribed("a")
    going = asyncio.create_task(broker.subscribe(["b"]))
    await asyncio.sleep(0)
    await broker.unsubscribe(["b"])
    await broker.unsubscribe(["a"])
    await broker.subscribe(["a"])
    await going
    last = asyncio.create_task(broker.subscribe(["z"]))
    assert await link.commands(1) == [["SUBSCRIBE", "z"]]
    link.say(*ack("z"))
    await last


async def test_a_superseded_call_does_not_keep_what_a_later_one_gave_up(
    broker: ScriptedBroker,
) -> None:
    first = asyncio.create_task(broker.subscribe(["a"]))
    link = await broker.next_link()
    assert await link.commands(1) == [["SUBSCRIBE", "a", PROBE]]

    async def change() -> None:
        await broker.unsubscribe(["a"])
        await broker.subscribe(["a"])

    second = asyncio.create_task(change())
    await asyncio.wait_for(first, 5)
    second.cancel()
    await asyncio.wait([second])
    assert await link.commands(2) == [["UNSUBSCRIBE", "a", PROBE], ["PING"]]


async def test_the_last_name_takes_the_probe_with_it(broker: ScriptedBroker) -> None:
    link = await broker.subscribed("a")
    await broker.unsubscribe(["a"])
    assert await link.commands(2) == [["UNSUBSCRIBE", "a", PROBE], ["PING"]]
    link.say(*ack("a", PROBE, verb=b"unsubscribe"), b"PONG")
    again = asyncio.create_task(broker.subscribe(["b"]))
    assert await link.commands(1) == [["SUBSCRIBE", "b", PROBE]]
    link.say(*ack("b", PROBE))
    await again


async def test_a_name_that_was_refused_and_is_not_wanted_any_more_is_left_alone(
    broker: ScriptedBroker,
) -> None:
    link = await broker.subscribed("a")
    both = asyncio.create_task(broker.subscribe(["b", "c"]))
    assert await link.commands(1) == [["SUBSCRIBE", "b", "c"]]
    await broker.unsubscribe(["b"])
    assert await link.commands(2) == [["UNSUBSCRIBE", "b"], ["PING"]]
    # c is forbidden, so the server refused both; then it did what it was told about b.
    link.say(hiredis.ReplyError("NOPERM"), *ack("b", verb=b"unsubscribe"), b"PONG")
    assert await link.commands(1) == [["SUBSCRIBE", "c"]]
    link.say(hiredis.ReplyError("NOPERM"))
    with pytest.raises(SubscribeError, match="NOPERM"):
        await asyncio.wait_for(both, 5)
    again = asyncio.create_task(broker.subscribe(["b"]))
    assert await link.commands(1) == [["SUBSCRIBE", "b"]]
    link.say(*ack("b"))
    await asyncio.wait_for(again, 5)


async def test_what_the_server_takes_away_is_asked_for_again_and_is_a_gap(
    broker: ScriptedBroker, sink: RecordingSink
) -> None:
    link = await broker.subscribed("a", "b")
    link.say(*ack("a", verb=b"unsubscribe"), message("b", b"1"))
    assert await link.commands(1) == [["SUBSCRIBE", "a"]]
    link.say(*ack("a"), message("a", b"2"))
    await sink.until("message", "a", b"2")
    assert seen(sink) == [("b", b"1"), ("lost", ("a",)), ("a", b"2")]


@pytest.mark.parametrize("answers", [False, True])
async def test_a_node_waits_while_something_is_wanted_and_no_longer(
    broker: ScriptedBroker, answers: bool
) -> None:
    """A cluster is asked twice a second for a successor of a node that waits, not of others."""
    opening = asyncio.Event()

    async def connect() -> Connection:
        opening.set()
        if not answers:
            await asyncio.Event().wait()
        raise ConnectError(broker.url, "refused")

    name = b"django_sockets:{a}"
    sink = RecordingSink()
    node = Node(broker.url, sink, broker._subscriptions, open_connection=connect, pubsub=PLAIN)
    assert not node.waiting
    node.want("a", name)
    await opening.wait()
    assert node.waiting
    await asyncio.sleep(0)
    assert node.waiting
    node.unwant(name)
    assert not node.waiting
    await node.aclose()


async def test_news_of_another_server_ends_the_pause_between_attempts(
    broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If sentinels name a new primary, the pause for the old one ends."""
    monkeypatch.setattr(Backoff, "FIRST_SECONDS", 3600.0)
    monkeypatch.setattr(Backoff, "CAP_SECONDS", 3600.0)
    link = await broker.subscribed("a")
    broker.refusing = True
    link.close()
    await asyncio.wait_for(broker.refused.wait(), 5)
    await asyncio.sleep(0)
    broker.refusing = False
    broker.reset()
    link = await broker.next_link()
    assert await link.commands(1) == [["SUBSCRIBE", "a", PROBE]]


async def test_after_a_link_that_carried_something_there_is_no_pause(
    broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is cut now and then is opened again at once, each time."""
    monkeypatch.setattr(Backoff, "FIRST_SECONDS", 1000.0)
    monkeypatch.setattr(Backoff, "CAP_SECONDS", 1000.0)
    link = await broker.subscribed("a")
    for _ in range(3):
        link.close()
        link = await broker.next_link()
        await link.commands(1)
        link.say(*ack("a", PROBE))
        await broker.subscribe(["a"])


async def test_a_link_that_came_too_late_for_its_caller_is_replaced_for_the_next_one() -> None:
    """A caller that gives up while the connection is made must not leave later ones without one."""
    opened = asyncio.Event()

    class Slow(ScriptedBroker):
        async def _open(self) -> Connection:
            await opened.wait()
            return await super()._open()

    broker = Slow(RecordingSink())
    gone = asyncio.create_task(broker.subscribe(["a"]))
    await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.wait([gone])
    opened.set()
    link = await broker.next_link()
    call = asyncio.create_task(broker.subscribe(["b"]))
    assert await link.commands(1) == [["SUBSCRIBE", "b", PROBE]]
    link.say(*ack("b", PROBE))
    await call
    link.close()
    assert await (await broker.next_link()).commands(1) == [["SUBSCRIBE", "b", PROBE]]
    await broker.aclose()


async def test_a_server_is_not_given_up_while_its_messages_are_still_handed_out() -> None:
    """A burst to very many sockets takes longer than a PING may, and blocks the reply."""
    going = asyncio.Event()

    class Slow(RecordingSink):
        async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
            await going.wait()
            await super().deliver(batch)

    sink = Slow()
    broker = ScriptedBroker(sink)
    link = await broker.subscribed("a")
    link.say(message("a", b"1"))
    await asyncio.sleep(0)
    answer = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(await_reply(link, answer, 0.05, "no answer to PING"))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    going.set()
    answer.set_result(None)
    await waiting
    await broker.aclose()


# One connection takes over from another.


async def test_the_old_link_has_its_say_before_the_new_one(
    broker: ScriptedBroker, sink: RecordingSink
) -> None:
    """Messages that arrived on both are repeated here; the hub drops them."""
    old = await broker.subscribed("a", "b")
    rotation = broker.rotate()
    new = await broker.successor("a", "b")
    new.say(*ack("a"), message("a", b"2"), *ack("b", PROBE), message("b", b"3"))
    new.say(message("a", b"4"))
    assert await old.commands(1) == [["PING"]]
    assert seen(sink) == []
    old.say(message("a", b"1"), message("a", b"2"), b"PONG")
    await rotation
    await sink.until("message", "a", b"4")
    assert seen(sink) == [("a", b"1"), ("a", b"2"), ("a", b"2"), ("b", b"3"), ("a", b"4")]
    assert old.aborted
    assert not new.aborted


async def test_an_old_link_that_dies_before_its_last_word_is_a_gap(
    broker: ScriptedBroker, sink: RecordingSink
) -> None:
    old = await broker.subscribed("a")
    rotation = broker.rotate()
    new = await broker.successor("a")
    new.say(*ack("a", PROBE), message("a", b"5"))
    assert await old.commands(1) == [["PING"]]
    old.say(message("a", b"1"))
    await sink.until("message", "a", b"1")
    old.close()
    await rotation
    await sink.until("message", "a", b"5")
    assert seen(sink) == [("a", b"1"), ("lost", ("a",)), ("a", b"5")]


async def test_a_gap_stands_where_messages_go_on_first_while_two_links_are_there(
    broker: ScriptedBroker, sink: RecordingSink
) -> None:
    old = await broker.subscribed("a", "b")
    rotation = broker.rotate()
    new = await broker.successor("a", "b")
    old.close()
    again = await broker.successor("a", "b")
    new.say(*ack("a"))  # After the loss, and it is not this link that delivers first.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    again.say(*ack("a", "b", PROBE), message("a", b"7"))
    await sink.until("message", "a", b"7")
    assert seen(sink) == [("lost", ("a", "b")), ("a", b"7")]
    new.say(*ack("b", PROBE), message("b", b"8"))
    assert await again.commands(1) == [["PING"]]
    again.say(b"PONG")
    await rotation
    await sink.until("message", "b", b"8")
    assert seen(sink)[2:] == [("b", b"8")]


async def test_a_connection_that_cannot_be_renewed_leaves_everything_as_it_was(
    broker: ScriptedBroker, sink: RecordingSink
) -> None:
    old = await broker.subscribed("a")
    broker.refusing = True
    rotation = broker.rotate()
    call = asyncio.create_task(broker.subscribe(["b"]))
    assert await old.commands(1) == [["SUBSCRIBE", "b"]]
    old.say(*ack("b"), message("a", b"1"), message("b", b"2"))
    await call
    await rotation
    await sink.until("message", "b", b"2")
    assert seen(sink) == [("a", b"1"), ("b", b"2")]
    assert not old.aborted


async def test_losing_a_new_link_loses_only_channels_that_no_other_link_carries(
    broker: ScriptedBroker, sink: RecordingSink
) -> None:
    old = await broker.subscribed("a")
    rotation = broker.rotate()
    new = await broker.successor("a")
    calls = []
    for channel in "cd":
        calls.append(asyncio.create_task(broker.subscribe([channel])))
        assert await new.commands(1) == [["SUBSCRIBE", channel]]
    new.say(*ack("a", PROBE, "c"))
    await calls[0]
    new.close()
    await rotation
    assert await old.commands(1) == [["SUBSCRIBE", "c", "d"]]
    old.say(message("a", b"1"), *ack("c", "d"), message("c", b"2"), message("d", b"3"))
    await calls[1]
    await sink.until("message", "d", b"3")
    told = [("a", b"1"), ("lost", ("c",)), ("c", b"2"), ("d", b"3")]
    assert seen(sink) == told
    # Nor is there a gap when the next attempt succeeds.
    rotation = broker.rotate()
    new = await broker.successor("a", "c", "d")
    new.say(*ack("a", "c", "d", PROBE), message("a", b"4"))
    assert await old.commands(1) == [["PING"]]
    old.say(b"PONG")
    await rotation
    await sink.until("message", "a", b"4")
    assert seen(sink) == [*told, ("a", b"4")]


async def test_a_channel_that_is_left_and_wanted_again_during_a_takeover(
    broker: ScriptedBroker, sink: RecordingSink
) -> None:
    old = await broker.subscribed("a", "b", "c")
    rotation = broker.rotate()
    new = await broker.successor("a", "b", "c")
    await broker.unsubscribe(["b", "c"])
    assert await old.commands(2) == [["UNSUBSCRIBE", "b", "c"], ["PING"]]
    back = asyncio.create_task(broker.subscribe(["c"]))
    gone = [["UNSUBSCRIBE", "b", "c"], ["PING"]]
    assert await new.commands(3) == [*gone, ["SUBSCRIBE", "c"]]
    new.say(*ack("a", "b", "c", PROBE), message("b", b"1"), message("a", b"2"))
    new.say(*ack("b", "c", verb=b"unsubscribe"), b"PONG", *ack("c"), message("c", b"3"))
    await back
    assert await old.commands(1) == [["PING"]]
    old.say(message("b", b"1"), *ack("b", "c", verb=b"unsubscribe"), b"PONG", b"PONG")
    await rotation
    await sink.until("message", "c", b"3")
    assert seen(sink) == [("a", b"2"), ("c", b"3")]


async def test_a_change_of_mind_leaves_nothing_to_wait_for(broker: ScriptedBroker) -> None:
    """A connection takes over even if its last subscription was withdrawn."""
    await broker.subscribed("a")
    grants = broker._node._subscriber.state
    grants.unwant(b"django_sockets:{a}")
    assert grants.want("a", b"django_sockets:{a}")
    assert not grants.settled
    await asyncio.wait_for(grants.until_settled(), 5)
    assert grants.settled


async def test_all_subscribers_leave_while_a_connection_takes_over(broker: ScriptedBroker) -> None:
    old = await broker.subscribed("a")
    rotation = broker.rotate()
    new = await broker.next_link()
    await broker.unsubscribe(["a"])

    async def answer() -> None:
        while not rotation.done():
            await asyncio.sleep(0)
            for link in (old, new):
                asked, link.written = link.written, []
                for verb, *names in asked:
                    link.say(*(ack(*names, verb=verb.lower().encode()) if names else [b"PONG"]))

    await asyncio.wait_for(answer(), 5)
    rotation.result()


async def test_a_channel_that_is_forbidden_stops_no_takeover(
    broker: ScriptedBroker, sink: RecordingSink
) -> None:
    old = await broker.subscribed("a", "b")
    old.close()
    old = await broker.successor("a", "b")
    refusal = hiredis.ReplyError("NOPERM")
    old.say(refusal)
    assert await old.commands(3) == [["SUBSCRIBE", "a"], ["SUBSCRIBE", "b"], ["SUBSCRIBE", PROBE]]
    old.say(*ack("a"), refusal, *ack(PROBE), message("a", b"1"))
    await sink.until("message", "a", b"1")
    rotation = broker.rotate()
    new = await broker.successor("a", "b")
    new.say(refusal)
    assert await new.commands(3) == [["SUBSCRIBE", "a"], ["SUBSCRIBE", "b"], ["SUBSCRIBE", PROBE]]
    new.say(*ack("a"), refusal, *ack(PROBE), message("a", b"2"))
    assert await old.commands(1) == [["PING"]]
    old.say(b"PONG")
    await rotation
    await sink.until("message", "a", b"2")
    assert seen(sink) == [("lost", ("a",)), ("a", b"1"), ("a", b"2")]


async def test_what_a_new_link_cannot_have_yet_was_not_lost(
    broker: ScriptedBroker, sink: RecordingSink
) -> None:
    old = await broker.subscribed("a")
    rotation = broker.rotate()
    new = await broker.successor("a")
    call = asyncio.create_task(broker.subscribe(["c"]))
    assert await new.commands(1) == [["SUBSCRIBE", "c"]]
    new.say(*ack("a", PROBE), hiredis.ReplyError("LOADING"))
    assert await old.commands(1) == [["PING"]]
    old.say(b"PONG")
    await rotation
    assert await new.commands(1) == [["SUBSCRIBE", "c"]]
    new.say(*ack("c"), message("c", b"1"))
    await call
    await sink.until("message", "c", b"1")
    assert seen(sink) == [("c", b"1")]


async def test_there_is_one_takeover_at_a_time(broker: ScriptedBroker) -> None:
    await broker.subscribed("a")
    rotation = broker.rotate()
    await broker.successor("a")
    assert broker.rotate() is rotation
    await asyncio.sleep(0)
    assert broker.links.empty()


async def test_a_wrong_server_is_left_by_the_connection_that_takes_over_too(
    broker: ScriptedBroker,
) -> None:
    old = await broker.subscribed("a")
    rotation = broker.rotate()
    new = await broker.successor("a")
    broker.reset()
    assert old.aborted
    assert new.aborted
    new.close()
    await rotation


# Two connections that do not lead to the same server


@pytest.mark.parametrize(
    ("before", "after", "gap"),
    [
        ("1", "1", False),
        ("1", "2", True),
        ("1", "", True),  # Its server did not allow the question, and the other one did.
        ("", "2", False),
        ("", "", False),
    ],
)
async def test_a_takeover_by_a_link_to_another_server_is_a_gap(
    broker: ScriptedBroker, sink: RecordingSink, before: str, after: str, gap: bool
) -> None:
    old = await broker.subscribed("a", "b")
    old.identity = Identity(before, PRIMARY)
    rotation = broker.rotate()
    new = await broker.successor("a", "b")
    new.identity = Identity(after, PRIMARY)
    new.say(*ack("a", "b", PROBE), message("a", b"2"))
    assert await old.commands(1) == [["PING"]]
    old.say(message("a", b"1"), b"PONG")
    await rotation
    await sink.until("message", "a", b"2")
    lost = [("lost", ("a", "b"))] if gap else []
    assert seen(sink) == [("a", b"1"), *lost, ("a", b"2")]


async def test_a_publishing_link_that_is_renewed_alone_takes_the_other_one_along(
    broker: ScriptedBroker, sink: RecordingSink
) -> None:
    old = await broker.subscribed("a")
    old.identity = Identity("1", PRIMARY)
    call = asyncio.create_task(broker.publish(["a"], b"x"))
    publishing = await broker.next_link()
    publishing.identity = Identity("1", PRIMARY)
    await publishing.commands(1)
    publishing.chunks.put_nowait([1])
    await call
    broker.next_identity = Identity("2", PRIMARY)
    broker.allowed = 1
    rotation = broker.rotate()
    await broker.next_link()
    await rotation
    assert old.aborted
    broker.allowed = 1000
    old.close()
    new = await broker.successor("a")
    new.say(*ack("a", PROBE), message("a", b"2"))
    await sink.until("message", "a", b"2")
    assert seen(sink) == [("lost", ("a",)), ("a", b"2")]


async def test_a_broker_that_is_closed_before_a_delivery_begins_leaves_no_coroutine(
    broker: ScriptedBroker, recwarn: pytest.WarningsRecorder
) -> None:
    link = await broker.subscribed("room")
    subscriber = broker._node._subscriber
    assert subscriber.take(iter([message_of(link, "room")])) is None
    pending = subscriber.flush()
    assert pending is not None
    pending.close()  # As `parser.consume` does when it is cancelled.
    await broker.aclose()
    gc.collect()
    assert [one for one in recwarn if "never awaited" in str(one.message)] == []


def message_of(link: ScriptedConnection, name: str) -> list[Any]:
    return [b"message", link.long(name), b"x"]
