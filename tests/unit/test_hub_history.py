"""A hub heals channels with a history rule, and subscribers resume from a position."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import pytest

from django_sockets import Gap, Hub, Message, PositionError, Recovery, open_hub
from django_sockets.broadcaster import Broadcaster
from django_sockets.broker import HistoryItem, Sink
from django_sockets.conf import Config, load_config
from django_sockets.deadlines import with_deadline
from django_sockets.delivery.envelope import Publisher
from django_sockets.delivery.send_queue import SendQueue
from django_sockets.errors import BrokerClosed, SubscribeError
from django_sockets.history import HistoryReply, HistoryStatus, Position, Start
from django_sockets.hub.history import joins
from django_sockets.hub.history.recent_reads import (
    RECENT_BYTES,
    RECENT_SECONDS,
    RecentRead,
    RecentReads,
)
from django_sockets.registry import open_broker
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import Faults, SocketClient, override_broker
from django_sockets.testing.ledger import listening
from django_sockets.url import BrokerURL

ROOM, PLAIN = "kept:1", "plain"
RULES = {"kept:": {"messages": 100, "seconds": 60}}
_names = itertools.count()


def source(history: Any = RULES) -> dict[str, Any]:
    return {"url": f"memory://hub-history-{next(_names)}", "history": history}


class Counted:
    """The memory broker; counts the reads, and can hold back its replies.

    Attributes:
        reads: channel and start of each read, in order.
        held: while it is set, batches with replies wait.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.reads: list[tuple[str, Start]] = []
        self.passing = asyncio.Event()
        self.passing.set()
        base = load_config(config)
        self.config = Config(base.url, base.settings, open_broker=self._open)

    def _open(self, url: BrokerURL, sink: Sink) -> Any:
        self._sink: Any = sink
        broker: Any = open_broker(url, self)
        subscribe, request = broker.subscribe_with_history, broker.request_history

        async def subscribe_with_history(starts: Mapping[str, Start]) -> None:
            self.reads += starts.items()
            await subscribe(starts)

        def request_history(channel: str, start: Start) -> None:
            self.reads.append((channel, start))
            request(channel, start)

        broker.subscribe_with_history = subscribe_with_history
        broker.request_history = request_history
        return broker

    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        await self._sink.deliver(batch)

    def lost(self, channels: Sequence[str], reason: str) -> None:
        self._sink.lost(channels, reason)

    async def deliver_with_history(self, batch: Sequence[HistoryItem]) -> None:
        await self.passing.wait()
        await self._sink.deliver_with_history(batch)

    def history_renamed(self, channels: Sequence[str], history_id: bytes) -> None:
        self._sink.history_renamed(channels, history_id)


@contextlib.asynccontextmanager
async def counted(history: Any = RULES) -> AsyncIterator[tuple[Counted, Hub]]:
    broker = Counted(source(history))
    async with open_hub(broker.config) as hub:
        yield broker, hub


async def publish(hub: Hub, *payloads: str, channel: str = ROOM) -> None:
    for payload in payloads:
        await hub.publish(channel, payload.encode())


def shown(events: Sequence[Any]) -> list[str]:
    """The payloads, and "gap <reason>" for gaps."""
    return [
        f"gap {event.reason}" if isinstance(event, Gap) else event.payload.decode()
        for event in events
    ]


async def take(events: Any, count: int) -> list[Any]:
    async def some() -> list[Any]:
        return [await anext(events) for _ in range(count)]

    return await with_deadline(5, some())


async def position_behind(hub: Hub, *payloads: str) -> str:
    """Publish, and return the position behind the last one."""
    async with hub.subscribe(ROOM) as events:
        await publish(hub, *payloads)
        return str((await take(events, len(payloads)))[-1].position)


class Nobody:
    """The sink of a broker that only publishes."""

    async def deliver(self, batch: Sequence[HistoryItem]) -> None: ...

    def lost(self, channels: Sequence[str], reason: str) -> None: ...

    deliver_with_history = deliver

    def history_renamed(self, channels: Sequence[str], history_id: bytes) -> None: ...


@contextlib.asynccontextmanager
async def other_process(config: Any) -> AsyncIterator[Callable[[str], Any]]:
    """A function that publishes to the room as another process does, on the same bus."""
    publisher = Publisher(16)
    headers = [publisher.headers([ROOM], is_text=True) for _ in range(4)]
    del publisher  # This process does not know when it has published.
    broker = open_broker(load_config(config).url, Nobody())
    left = iter(headers)

    async def publish(payload: str) -> None:
        await broker.publish([ROOM], payload.encode(), next(left))

    try:
        yield publish
    finally:
        await broker.aclose()


# Positions


async def test_messages_of_kept_channels_have_positions_and_others_have_none() -> None:
    async with open_hub(source()) as hub, hub.subscribe(ROOM, PLAIN) as events:
        assert events.recoveries[PLAIN] == Recovery(False, None, 0)
        start = events.recoveries[ROOM]
        assert (start.recovered, start.count) == (False, 0)
        assert start.position is not None
        assert Position.parse(start.position).offset == 0
        await publish(hub, "a", "b")
        await publish(hub, "c", channel=PLAIN)
        first, second, plain = await take(events, 3)
        assert [Position.parse(m.position).offset for m in (first, second)] == [1, 2]
        assert plain == Message(channel=PLAIN, payload=b"c")
        assert plain.position is None


async def test_a_second_subscriber_gets_the_present_position_without_a_read() -> None:
    async with counted() as (broker, hub), hub.subscribe(ROOM) as events:
        await publish(hub, "a")
        (message,) = await take(events, 1)
        async with hub.subscribe(ROOM) as others:
            assert others.recoveries[ROOM].position == message.position
        assert len(broker.reads) == 1


async def test_without_rules_nothing_is_read_and_since_is_a_gap() -> None:
    async with open_hub(source({"other:": {"messages": 1, "seconds": 1}})) as hub:
        text = str(Position(b"epoch678", 3, b"t" * 16, b"history1"))
        async with hub.subscribe(ROOM, since=text) as events:
            assert events.recoveries[ROOM] == Recovery(False, None, 0)
            await publish(hub, "a")
            assert shown(await take(events, 2)) == ["gap history", "a"]


@pytest.mark.parametrize("since", ["", "nonsense", {ROOM: "nonsense"}, 5])
async def test_a_text_that_is_no_position_is_refused(since: Any) -> None:
    async with open_hub(source()) as hub:
        with pytest.raises(PositionError):
            async with hub.subscribe(ROOM, since=since):
                raise AssertionError
        assert hub.stats()["subscribers"] == 0


@pytest.mark.parametrize("replay", [-1, True, 1.5, "3"])
async def test_a_replay_that_is_no_number_is_refused(replay: Any) -> None:
    async with open_hub(source()) as hub:
        with pytest.raises(ValueError, match="replay"):
            async with hub.subscribe(ROOM, replay=replay):
                raise AssertionError


# Resuming


async def test_the_first_subscriber_gets_what_it_missed_and_then_live_messages() -> None:
    async with counted() as (broker, hub):
        position = await position_behind(hub, "a", "b")
        await publish(hub, "c", "d")
        async with hub.subscribe(ROOM, since=position) as events:
            recovery = events.recoveries[ROOM]
            assert (recovery.recovered, recovery.count) == (True, 2)
            await publish(hub, "e")
            heard = await take(events, 3)
            assert shown(heard) == ["c", "d", "e"]
            assert heard[1].position == recovery.position
        assert len(broker.reads) == 2


async def test_only_the_joining_subscriber_gets_what_it_missed() -> None:
    async with counted() as (broker, hub), hub.subscribe(ROOM) as others:
        await publish(hub, "a", "b", "c")
        heard = await take(others, 3)
        async with hub.subscribe(ROOM, since=heard[0].position) as events:
            assert events.recoveries[ROOM] == Recovery(True, heard[2].position, 2)
            await publish(hub, "d")
            assert shown(await take(events, 3)) == ["b", "c", "d"]
        assert shown(await take(others, 1)) == ["d"]
        assert [start for _, start in broker.reads[1:]] == [Position.parse(heard[0].position)]


async def test_a_subscriber_that_missed_nothing_is_recovered_with_no_message() -> None:
    async with open_hub(source()) as hub, hub.subscribe(ROOM) as others:
        await publish(hub, "a")
        (message,) = await take(others, 1)
        async with hub.subscribe(ROOM, since={ROOM: message.position}) as events:
            assert events.recoveries[ROOM] == Recovery(True, message.position, 0)


async def test_joins_that_come_together_share_one_read_and_each_gets_its_part() -> None:
    async with counted() as (broker, hub), hub.subscribe(ROOM) as others:
        await publish(hub, *"abcdef")
        positions = [message.position for message in await take(others, 6)]
        broker.passing.clear()
        queues = [hub.new_queue() for _ in range(6)]
        first = asyncio.ensure_future(hub.add(hub.new_queue(), ROOM, since=positions[5]))
        joins = [
            asyncio.ensure_future(hub.add(queue, ROOM, since=position))
            for queue, position in zip(queues, reversed(positions), strict=True)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        broker.passing.set()
        await first
        results = await asyncio.gather(*joins)
        await publish(hub, "g")
        await take(others, 1)
        for number, (queue, result) in enumerate(zip(queues, results, strict=True)):
            assert result[ROOM] == Recovery(True, positions[5], number)
            parts = [event.payload.decode() for event in queue.drain()]
            assert parts == [*list("abcdef"[6 - number :]), "g"]
        # One for the first subscriber, one for the first join, and one for the six others.
        assert len(broker.reads) == 3
        assert broker.reads[2][1] == Position.parse(positions[0])


async def test_joins_one_after_the_other_share_a_read_until_the_next_message() -> None:
    async with counted() as (broker, hub), hub.subscribe(ROOM) as others:
        await publish(hub, *"abcdef")
        positions = [message.position for message in await take(others, 6)]
        reads = [(ROOM, None)]
        # The read for "b" has all that "e", "f" and "c" miss, and not all that "a" misses.
        for index, is_read in [
            (1, True),
            (4, False),
            (5, False),
            (2, False),
            (0, True),
            (1, False),
        ]:
            async with hub.subscribe(ROOM, since=positions[index]) as events:
                missed = 5 - index
                assert events.recoveries[ROOM] == Recovery(True, positions[5], missed)
                assert shown(await take(events, missed)) == list("abcdef"[index + 1 :])
            if is_read:
                reads.append((ROOM, Position.parse(positions[index])))
            assert broker.reads == reads
        await publish(hub, "g")
        await take(others, 1)
        async with hub.subscribe(ROOM, since=positions[4]) as events:
            assert shown(await take(events, 2)) == ["f", "g"]
        assert len(broker.reads) == len(reads) + 1


async def test_the_last_messages_for_many_are_one_read() -> None:
    async with counted() as (broker, hub), hub.subscribe(ROOM) as others:
        await publish(hub, *"abcd")
        await take(others, 4)
        for replay, reads in [(2, 2), (2, 2), (3, 3), (2, 4)]:
            async with hub.subscribe(ROOM, replay=replay) as events:
                assert shown(await take(events, replay)) == list("abcd"[-replay:])
            assert len(broker.reads) == reads


async def test_a_read_is_not_used_for_another_history_or_after_the_channel_was_left() -> None:
    async with counted() as (broker, hub):
        place = await position_behind(hub, "a")
        at = Position.parse(place)
        other = str(Position(at.epoch, at.offset, at.tag, b"12345678"))
        for since, recovered in [(place, True), (other, False), (place, True)]:
            async with hub.subscribe(ROOM, since=since) as events:
                assert events.recoveries[ROOM].recovered is recovered
        assert len(broker.reads) == 4
        async with hub.subscribe(ROOM, since=place), hub.subscribe(ROOM, since=other) as events:
            assert not events.recoveries[ROOM].recovered
        assert len(broker.reads) == 6


def test_recent_reads_are_few_small_and_young() -> None:
    recent, place = RecentReads(), Position(b"12345678", 1, b"t" * 16, b"")
    reply = HistoryReply(HistoryStatus.WHOLE, place, (b"x" * (RECENT_BYTES // 4),))
    read = RecentRead(place, reply)
    for number in range(5):
        recent.put(str(number), read, now=0.0)
        recent.put(str(number), read, now=0.0)
    assert [recent.find(str(number), now=1.0) for number in range(5)] == [None] * 2 + [read] * 3
    assert recent.find("4", now=RECENT_SECONDS) is None
    recent.put("5", read, now=RECENT_SECONDS)
    assert recent.find("4", now=0.0) is None
    huge = RecentRead(place, HistoryReply(HistoryStatus.WHOLE, place, (b"x" * RECENT_BYTES,)))
    recent.put("6", huge, now=RECENT_SECONDS)
    assert recent.find("6", now=RECENT_SECONDS) is None


async def test_messages_that_are_not_kept_any_more_are_a_gap_before_the_first_message() -> None:
    async with open_hub(source({"kept:": {"messages": 2, "seconds": 60}})) as hub:
        position = await position_behind(hub, "a")
        await publish(hub, "b", "c", "d")
        async with hub.subscribe(ROOM, since=position) as events:
            recovery = events.recoveries[ROOM]
            assert (recovery.recovered, recovery.count) == (False, 0)
            await publish(hub, "e")
            heard = await take(events, 2)
            assert shown(heard) == ["gap history", "e"]
            assert heard[0].channels == (ROOM,)


async def test_a_join_whose_messages_are_kept_is_whole_beside_one_whose_are_not() -> None:
    rules = {"kept:": {"messages": 3, "seconds": 60}}
    async with counted(rules) as (broker, hub), hub.subscribe(ROOM) as others:
        await publish(hub, *"abcdef")
        positions = [message.position for message in await take(others, 6)]
        broker.passing.clear()
        queues = [hub.new_queue() for _ in range(4)]
        blocked = asyncio.ensure_future(hub.add(hub.new_queue(), ROOM, since=positions[5]))
        joins = [
            asyncio.ensure_future(hub.add(queue, ROOM, since=positions[index]))
            for queue, index in zip(queues, (0, 1, 2, 4), strict=True)
        ]
        await asyncio.sleep(0)
        broker.passing.set()
        await blocked
        results = [result[ROOM].recovered for result in await asyncio.gather(*joins)]
        assert results == [False, False, True, True]
        heard = [[getattr(e, "payload", b"gap") for e in queue.drain()] for queue in queues]
        assert heard == [[b"gap"], [b"gap"], [b"d", b"e", b"f"], [b"f"]]
        # The first subscriber, the blocked join, the lowest position, everything.
        assert [start for _, start in broker.reads[2:]] == [Position.parse(positions[0]), 3]


@pytest.mark.parametrize("change", ["epoch", "id", "tag", "offset"])
async def test_a_position_of_another_history_is_never_recovered(change: str) -> None:
    async with open_hub(source()) as hub:
        place = Position.parse(await position_behind(hub, "a", "b"))
        epoch, offset, tag, line = place.epoch, place.offset, place.tag, place.history_id
        other = {
            "epoch": Position(b"another!", offset, tag, line),
            "id": Position(epoch, offset, tag, b"another!"),
            "tag": Position(epoch, offset, b"x" * 16, line),
            "offset": Position(epoch, offset - 1, tag, line),
        }[change]
        async with hub.subscribe(ROOM, since=str(other)) as events:
            assert not events.recoveries[ROOM].recovered
            assert shown(await take(events, 1)) == ["gap history"]


@pytest.mark.parametrize("joined", [False, True])
async def test_the_last_messages_on_subscription(joined: bool) -> None:
    async with open_hub(source()) as hub, contextlib.AsyncExitStack() as stack:
        await publish(hub, *"abcde")
        if joined:
            await stack.enter_async_context(hub.subscribe(ROOM))
        for count, expected in ((1, "e"), (3, "cde"), (100, "abcde")):
            async with hub.subscribe(ROOM, replay=count) as events:
                recovery = events.recoveries[ROOM]
                assert (recovery.recovered, recovery.count) == (False, len(expected))
                assert shown(await take(events, len(expected))) == list(expected)


async def test_many_missed_messages_arrive_whole_although_the_queue_is_short() -> None:
    rules = {"kept:": {"messages": 5000, "seconds": 60}}
    async with open_hub(source(rules)) as hub:
        position = await position_behind(hub, "begin")
        payloads = [f"{number} {'x' * 300}" for number in range(3000)]  # Several replies.
        await publish(hub, *payloads)
        async with hub.subscribe(ROOM, since=position) as events:
            recovery = events.recoveries[ROOM]
            assert (recovery.recovered, recovery.count) == (True, 3000)
            assert shown(await take(events, 3000)) == payloads


async def test_a_message_that_was_too_large_to_be_kept_is_a_gap_for_a_subscriber_that_resumes() -> (
    None
):
    rules = {"kept:": {"messages": 10, "seconds": 60, "bytes": 5}}
    async with open_hub(source(rules)) as hub:
        position = await position_behind(hub, "a")
        await publish(hub, "too large", "b")
        async with hub.subscribe(ROOM, since=position) as events:
            assert not events.recoveries[ROOM].recovered
            assert shown(await take(events, 1)) == ["gap history"]
        async with hub.subscribe(ROOM, replay=2) as events:
            assert events.recoveries[ROOM].count == 1
            assert shown(await take(events, 2)) == ["gap history", "b"]


async def test_a_publish_that_failed_is_a_gap_among_the_replayed_messages() -> None:
    async with open_hub(source()) as hub:
        position = await position_behind(hub, "a")
        await publish(hub, "b")
        hub._publisher.headers([ROOM], is_text=False)  # Its message did not reach the server.
        await publish(hub, "c")
        async with hub.subscribe(ROOM, since=position) as events:
            assert events.recoveries[ROOM] == Recovery(True, events.recoveries[ROOM].position, 2)
            assert shown(await take(events, 3)) == ["b", "gap missed", "c"]


async def test_more_than_one_resume_may_replay_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joins, "REPLAY_BYTES", 1000)
    async with open_hub(source()) as hub:
        position = await position_behind(hub, "a")
        await publish(hub, *("x" * 100 for _ in range(20)))
        async with hub.subscribe(ROOM, since=position) as events:
            assert events.recoveries[ROOM].count == 0
            await publish(hub, "live")
            assert shown(await take(events, 2)) == ["gap history", "live"]


async def test_a_new_history_id_of_the_same_server_does_not_end_healing() -> None:
    async with counted() as (_, hub), hub.subscribe(ROOM) as events:
        await publish(hub, "a")
        await take(events, 1)
        history = hub._broker._bus.history
        history.id = b"renamed!"
        hub.history_renamed([ROOM, PLAIN], b"renamed!")
        hub.lost([ROOM], "a test")
        await publish(hub, "b")
        (message,) = await take(events, 1)
        assert (message.payload, Position.parse(message.position).history_id) == (b"b", b"renamed!")
        history.id = b"another!"
        hub.lost([ROOM], "a test")
        assert shown(await take(events, 1)) == ["gap history"]


async def test_a_subscriber_that_leaves_while_it_joins_gets_nothing() -> None:
    async with counted() as (broker, hub), hub.subscribe(ROOM) as others:
        await publish(hub, "a", "b")
        heard = await take(others, 2)
        broker.passing.clear()
        queue = hub.new_queue()
        joining = asyncio.ensure_future(hub.add(queue, ROOM, since=heard[0].position))
        await asyncio.sleep(0)
        assert hub.channels_of(queue) == {ROOM}
        await hub.remove(queue)
        assert await with_deadline(5, joining) == {ROOM: Recovery()}
        broker.passing.set()
        await publish(hub, "c")
        await take(others, 1)
        assert queue.drain() == []


async def test_a_cancelled_join_leaves_the_other_subscribers_alone() -> None:
    async with counted() as (broker, hub):
        broker.passing.clear()
        queues = [hub.new_queue() for _ in range(2)]
        calls = [asyncio.ensure_future(hub.add(queue, ROOM)) for queue in queues]
        await asyncio.sleep(0)
        calls[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[0]
        broker.passing.set()
        assert (await with_deadline(5, calls[1]))[ROOM].position is not None
        await publish(hub, "a")
        event = await with_deadline(5, queues[1].next())
        assert (event.payload, queues[0].drain()) == (b"a", [])


async def test_closing_the_hub_ends_a_join() -> None:
    async with counted() as (broker, hub), hub.subscribe(ROOM) as events:
        await publish(hub, "a")
        (message,) = await take(events, 1)
        broker.passing.clear()
        joining = asyncio.ensure_future(hub.add(hub.new_queue(), ROOM, since=message.position))
        await asyncio.sleep(0)
        await hub.aclose()
        with pytest.raises(BrokerClosed):
            await joining


async def test_a_subscriber_that_has_the_channel_is_not_given_anything_again() -> None:
    async with open_hub(source()) as hub, hub.subscribe(ROOM) as events:
        await publish(hub, "a", "b")
        heard = await take(events, 2)
        result = await hub.add(events, ROOM, since=heard[0].position)
        assert result == {ROOM: Recovery(False, heard[1].position, 0)}
        await publish(hub, "c")
        assert shown(await take(events, 1)) == ["c"]


async def test_a_failed_subscription_leaves_no_history_behind() -> None:
    async with counted() as (_, hub):
        broker = hub._broker

        async def refuse(channels: Any) -> None:
            raise SubscribeError(hub.config.url, "refused", channels=channels)

        subscribe: Callable[..., Any] = broker.subscribe
        broker.subscribe = refuse
        with pytest.raises(SubscribeError):
            await hub.add(hub.new_queue(), [ROOM, PLAIN])
        assert hub.stats()["channels"] == 0
        broker.subscribe = subscribe
        async with hub.subscribe(ROOM) as events:
            await publish(hub, "a")
            assert shown(await take(events, 1)) == ["a"]


# Healing


async def test_a_message_that_was_dropped_is_healed_by_the_next_one() -> None:
    faults = Faults()
    async with open_hub(faults.around(source())) as hub, listening(hub, ROOM) as heard:
        faults.drop()
        await publish(hub, "first", "b", "c")
        faults.drop(2)
        await publish(hub, "d", "e", "f")
        await heard.until_payload(b"f")
        assert shown(heard.events) == ["first", "b", "c", "d", "e", "f"]
        assert faults.done["drop"] == 3


async def test_a_lost_link_is_healed_without_a_gap() -> None:
    faults = Faults()
    async with open_hub(faults.around(source())) as hub, listening(hub, ROOM, PLAIN) as heard:
        await publish(hub, "a")
        faults.pass_on(1)
        faults.disconnect(2)
        await publish(hub, "b", "c")
        await publish(hub, "d")
        await heard.until_payload(b"d")
        assert shown(e for e in heard.events if isinstance(e, Message)) == list("abcd")
        assert [e.channels for e in heard.events if isinstance(e, Gap)] == [(PLAIN,)]


async def test_a_test_can_forbid_to_heal() -> None:
    faults = Faults()
    async with open_hub(faults.around(source())) as hub, listening(hub, ROOM) as heard:
        await publish(hub, "a")
        await heard.until_payload(b"a")
        faults.heals = False
        faults.drop()
        await publish(hub, "b", "c", "d")
        await heard.until_gap()
        await publish(hub, "e")
        await heard.until_payload(b"e")
        assert "b" not in shown(heard.events)
        assert shown(heard.events).count("gap history") == 1
        faults.heals = True
        faults.disconnect()
        await publish(hub, "f", "g")
        # The position has no history id, because it comes from a live message: a second gap.
        await heard.until_gap(start=len(heard.events))
        faults.disconnect()
        await publish(hub, "h", "i")
        await heard.until_payload(b"i")
        assert shown(heard.events)[-3:] == ["gap history", "h", "i"]


async def test_a_position_that_could_not_be_read_is_read_later() -> None:
    faults = Faults(heals=False)
    rules = {"kept:": {"messages": 10, "seconds": 0.6}}
    async with open_hub(faults.around(source(rules))) as hub, listening(hub, ROOM) as heard:
        await publish(hub, "a")
        await heard.until_payload(b"a")
        assert Position.parse(heard.events[-1].position).history_id == b""
        faults.heals = True
        await asyncio.sleep(0.3)  # Three times the interval at which quiet channels are renewed.
        faults.disconnect()
        await publish(hub, "b", "c")
        await heard.until_payload(b"c")
        assert shown(heard.events) == ["a", "b", "c"]


async def test_random_faults_lose_and_repeat_nothing() -> None:
    for seed in range(5):
        faults = Faults(seed=seed, rate=0.4)
        config = faults.around(source({"kept:": {"messages": 1000, "seconds": 60}}))
        async with open_hub(config) as hub, listening(hub, ROOM) as heard:
            for number in range(200):
                await publish(hub, str(number))
            await faults.until_seen(200)
            faults.stop()
            await publish(hub, "last")
            await publish(hub, "the very last")
            await heard.until_payload(b"the very last")
            expected = [*map(str, range(200)), "last", "the very last"]
            assert shown(heard.events) == expected
            assert faults.done["drop"]


async def test_a_delivery_that_fails_is_a_gap_and_reading_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from django_sockets.hub.history import kept_channel

    async with open_hub(source()) as hub, hub.subscribe(ROOM) as events:
        await publish(hub, "a", "b")
        heard = await take(events, 2)
        read, left = kept_channel.read_replay, [1]

        def fail_once(*arguments: Any) -> Any:
            if left:
                left.clear()
                raise RuntimeError("surprise")
            return read(*arguments)

        monkeypatch.setattr(kept_channel, "read_replay", fail_once)
        queue = hub.new_queue()
        with pytest.raises(RuntimeError, match="surprise"):
            await with_deadline(5, hub.add(queue, ROOM, since=heard[0].position))
        assert hub.channels_of(queue) == set()
        assert shown(await take(events, 1)) == ["gap missed"]
        result = await with_deadline(5, hub.add(queue, ROOM, since=heard[0].position))
        assert (result[ROOM].recovered, result[ROOM].count) == (True, 1)
        await publish(hub, "c")
        assert shown(await take(events, 1)) == ["c"]


async def test_a_message_of_a_newer_version_is_a_gap_and_not_read_again_and_again() -> None:
    async with counted() as (broker, hub), hub.subscribe(ROOM) as events:
        await publish(hub, "a")
        (first,) = await take(events, 1)
        (header,) = hub._publisher.headers([ROOM], is_text=False)
        newer = header[:3] + b"\x02" + header[4:]
        await hub._broker.publish([ROOM], b"b", [newer])
        await publish(hub, "c")
        assert shown(await take(events, 2)) == ["gap version", "gap history"]
        await publish(hub, "d")
        assert shown(await take(events, 1)) == ["d"]
        assert len(broker.reads) == 2
        async with hub.subscribe(ROOM, since=first.position) as resumed:
            assert not resumed.recoveries[ROOM].recovered


async def test_a_reply_that_nobody_waits_for_is_ignored() -> None:
    async with open_hub(source()) as hub, hub.subscribe(ROOM) as events:
        await publish(hub, "a")
        await take(events, 1)
        reply = HistoryReply(HistoryStatus.BROKEN, Position(b"another!", 9, b"t" * 16, b"history1"))
        await hub.deliver_with_history([(ROOM, reply), (PLAIN, reply)])
        await publish(hub, "b")
        assert shown(await take(events, 1)) == ["b"]


async def test_quiet_channels_are_renewed_so_that_their_positions_stay_valid() -> None:
    rules = {"kept:": {"messages": 10, "seconds": 0.3}}
    config = source(rules)
    async with open_hub(config) as other, open_hub(config) as hub, hub.subscribe(ROOM) as events:
        await publish(other, "a")
        (message,) = await take(events, 1)
        await asyncio.sleep(0.9)  # Three times as long as an unused history is kept.
        await publish(other, "b")
        (second,) = await take(events, 1)
        assert Position.parse(second.position).epoch == Position.parse(message.position).epoch
        async with hub.subscribe(ROOM, since=message.position) as resumed:
            assert resumed.recoveries[ROOM].recovered
            assert shown(await take(resumed, 1)) == ["b"]


# Sockets


class Chat(BaseSocketServer):
    async def connect(self) -> None:
        await self.async_subscribe(ROOM)
        await self.async_send("ready")

    async def receive(self, data: Any) -> None:
        await self.async_broadcast(ROOM, data, exclude_self=True)

    async def gap(self, channels: Sequence[str], reason: str) -> None:
        await self.async_send({"missed": list(channels)})


async def test_sockets_are_healed_and_the_sender_is_still_left_out() -> None:
    faults = Faults()
    with override_broker(faults.around(source())):
        async with SocketClient(Chat.as_asgi) as one, SocketClient(Chat.as_asgi) as other:
            for client in (one, other):
                assert await client.receive_json() == "ready"
            faults.drop()
            await one.send_json("from one")
            await faults.until_seen(1)
            await other.send_json("from the other")
            await faults.until_seen(2)
            await Broadcaster().async_broadcast(ROOM, "to all")
            assert [await one.receive_json() for _ in range(2)] == ["from the other", "to all"]
            assert [await other.receive_json() for _ in range(2)] == ["from one", "to all"]


async def test_the_origin_of_a_message_does_not_get_it_when_it_is_replayed() -> None:
    async with open_hub(source()) as hub:
        position = await position_behind(hub, "a")
        for name in (b"one", b"two"):
            await hub.publish(ROOM, b"of " + name, origin=b"socket " + name)
        await publish(hub, "of nobody")
        queue = FrameQueue(b"socket one")
        await hub.add(queue, ROOM, direct=queue, since=position)
        assert queue.payloads == [b"of two", b"of nobody"]


class FrameQueue(SendQueue):
    """A socket whose server takes prepared frames."""

    def __init__(self, origin: bytes) -> None:
        super().__init__()
        self.origin = origin
        self.owner = self
        self.payloads: list[bytes] = []
        self.write = self._write

    def _write(self, frames: bytes) -> bool:
        while frames:
            size = frames[1]
            self.payloads.append(frames[2 : 2 + size])
            frames = frames[2 + size :]
        return True

    async def handle(self, item: Any) -> None:
        raise AssertionError(item)

    def failed(self, exc: Exception) -> None:
        raise exc

    def dropped(self, items: list[Any]) -> None:
        raise AssertionError(items)

    def new_backlog(self) -> Any:
        raise AssertionError

    def on_delivery(self, delivery: Any) -> None:
        raise AssertionError(delivery)

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        raise AssertionError(reason)


@pytest.mark.parametrize("resumes", [True, False])
async def test_a_publisher_that_the_history_has_is_not_unknown_to_the_channel(
    resumes: bool,
) -> None:
    """In a new process, the next message after a replay is no loss, however late it is read."""
    config = source()
    async with open_hub(config) as hub, other_process(config) as publish_elsewhere:
        start = await hub.position(ROOM)
        await publish_elsewhere("a")
        await publish_elsewhere("b")
        async with hub.subscribe(ROOM, since=start if resumes else None) as events:
            await publish_elsewhere("c")
            await publish_elsewhere("d")
            wanted = ["a", "b", "c", "d"] if resumes else ["c", "d"]
            assert shown(await take(events, len(wanted))) == wanted
