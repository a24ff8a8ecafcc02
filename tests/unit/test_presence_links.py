"""What a broker makes of odd answers and messages on the connection that watches a channel."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from django_sockets.backends import memory_inbox
from django_sockets.backends.client import open_reads
from django_sockets.backends.client.presence_scripts import CHANGE
from django_sockets.backends.watches import NEWER_FORMAT
from django_sockets.broker import Broker, SupportsPresence
from django_sockets.errors import PresenceError, SubscribeError
from django_sockets.presence import (
    ABSENT,
    LeaseAction,
    PresenceDiff,
    PresenceSnapshot,
    pack_diff,
)
from django_sockets.registry import open_broker
from django_sockets.testing.contract.presence_room import PresenceRecorder, PresenceRoom
from support.scripted_server import Conversation, ScriptedServer, encode, push

ROOM, NAME = "room", b"django_sockets:{room}:p"
EPOCH = b"epoch678"
SNAPSHOT = PresenceSnapshot(EPOCH, 5, {"p:1": b"x"})
HASH = encode({b":e": EPOCH, b":v": b"5", b"p:1": b"x"})
OPTIONS = "dead_peer_seconds=0.4&probe_interval_seconds=0.1&publish_timeout_seconds=2"


def diff(version: int, **changes: bytes) -> bytes:
    named = {f"p:{name}": value for name, value in changes.items()}
    return pack_diff(PresenceDiff(EPOCH, version, named or {"p:1": b"y"}))


class Watching:
    """A scripted server, and a broker whose sink records."""

    def __init__(self, server: ScriptedServer, broker: Broker, sink: PresenceRecorder) -> None:
        self.server = server
        self.broker = broker
        self.sink = sink

    @property
    def presence(self) -> SupportsPresence:
        assert isinstance(self.broker, SupportsPresence)
        return self.broker

    def send(self, *payloads: bytes, name: bytes = NAME) -> None:
        """Send messages to the watcher, in one packet."""
        (link,) = self.server.subscribers
        link.writer.write(b"".join(push(b"message", name, payload) for payload in payloads))


@asynccontextmanager
async def opened(sink: PresenceRecorder | None = None) -> AsyncIterator[Watching]:
    async with ScriptedServer() as server:
        server.answers["HGETALL"] = HASH
        sink = sink or PresenceRecorder()
        broker = open_broker(f"{server.url}?{OPTIONS}", sink)
        yield Watching(server, broker, sink)
        await broker.aclose()


@pytest.fixture
async def world() -> AsyncIterator[Watching]:
    async with opened() as world:
        yield world


async def test_a_watch_is_a_subscription_and_a_read_behind_it(world: Watching) -> None:
    written: list[list[bytes]] = []

    def record(_: Conversation, command: list[bytes]) -> None:
        written.append(command)

    world.server.answers["SUBSCRIBE"] = record
    world.server.answers["HGETALL"] = lambda _, command: record(_, command) or HASH
    await world.presence.watch_presence([ROOM])
    assert world.sink.seen == [("snapshot", ROOM, SNAPSHOT)]
    assert written[0][:2] == [b"SUBSCRIBE", NAME]
    assert written[-1] == [b"HGETALL", NAME]
    assert world.server.asked["EVALSHA"] == 0


async def test_a_snapshot_stands_between_the_diffs_of_its_packet(world: Watching) -> None:
    await world.presence.watch_presence([ROOM])
    before, after = (push(b"message", NAME, diff(version)) for version in (6, 7))
    message = push(b"message", b"django_sockets:{room}", b"hello")
    await world.broker.subscribe([ROOM])
    world.server.answers["HGETALL"] = before + message + HASH + message + after
    world.presence.request_presence(ROOM)
    await world.sink.diffs(ROOM, 2)
    assert [one[0] for one in world.sink.seen] == [
        "snapshot", "diff", "message", "snapshot", "message", "diff",
    ]  # fmt: skip


async def test_a_message_of_another_program_is_skipped_and_logged(
    world: Watching, caplog: pytest.LogCaptureFixture
) -> None:
    await world.presence.watch_presence([ROOM])
    world.send(b'{"json": true}', b"", diff(6)[:-1], diff(6))
    assert await world.sink.diffs(ROOM) == [PresenceDiff(EPOCH, 6, {"p:1": b"y"})]
    assert len(world.sink.seen) == 2
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "'room' is skipped" in record.getMessage()


async def test_a_diff_of_a_newer_version_is_a_loss(world: Watching) -> None:
    await world.presence.watch_presence([ROOM])
    world.send(diff(6), b"dp2 whatever", diff(8))
    await world.sink.diffs(ROOM, 2)
    assert [one[0] for one in world.sink.seen] == ["snapshot", "diff", "gone", "diff"]
    assert world.sink.seen[2] == ("gone", (ROOM,), NEWER_FORMAT)
    world.presence.request_presence(ROOM)
    assert (await world.sink.snapshots(ROOM, 2))[1] == SNAPSHOT


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"-NOPERM no permission\r\n", "refused to read: NOPERM"),
        (b"-WRONGTYPE no hash\r\n", "refused to read: WRONGTYPE"),
        (encode({b"field": b"value"}), "no epoch and version"),
        (encode({b":e": EPOCH, b":v": b"many"}), "no epoch and version"),
        (encode({b":e": EPOCH, b":v": b"1", b"p:1": 5}), "malformed"),
        (encode({b":e": 7, b":v": b"1"}), "malformed"),
        (encode(5), "malformed"),
    ],
)
async def test_an_answer_that_is_no_snapshot_gives_none(
    world: Watching, caplog: pytest.LogCaptureFixture, answer: bytes, problem: str
) -> None:
    world.server.answers["HGETALL"] = answer
    await world.presence.watch_presence([ROOM])
    assert world.sink.seen == [("snapshot", ROOM, None)]
    assert problem in caplog.text
    assert "cannot read the presence of 'room'" in caplog.text
    world.server.answers["HGETALL"] = HASH
    world.presence.request_presence(ROOM)
    assert (await world.sink.snapshots(ROOM, 2))[1] == SNAPSHOT
    world.server.answers["HGETALL"] = answer
    with pytest.raises(PresenceError, match=problem):
        await world.presence.read_presence([ROOM])


async def test_a_read_without_an_answer_gives_none_in_time(
    world: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_reads, "READ_SECONDS", 0.05)
    world.server.answers["HGETALL"] = b"-ASK 1 127.0.0.1:1\r\n"
    await world.presence.watch_presence([ROOM])
    assert world.sink.seen == [("snapshot", ROOM, None)]
    await world.server.__aexit__()
    world.presence.request_presence(ROOM)
    assert await world.sink.snapshots(ROOM, 2) == [None, None]


async def test_a_lost_link_is_told_after_the_new_subscription_and_read_on_request(
    world: Watching,
) -> None:
    await world.presence.watch_presence([ROOM])
    held: list[tuple[Conversation, list[bytes]]] = []

    def hold(conversation: Conversation, command: list[bytes]) -> bytes:
        held.append((conversation, command))
        return b""

    world.server.answers |= {"SUBSCRIBE": hold, "HGETALL": b""}
    world.server.cut()
    await world.server.until(lambda: bool(held))
    world.presence.request_presence(ROOM)
    await world.server.until(lambda: world.server.asked["HGETALL"] == 2)
    # Nobody is told before the server acknowledges, so that a reader misses nothing.
    assert len(world.sink.seen) == 1
    ((link, (_, *names)),) = held
    acknowledged = b"".join(push(b"subscribe", name, 1) for name in names)
    link.writer.write(acknowledged + HASH + push(b"message", NAME, diff(6)))
    await world.sink.diffs(ROOM)
    assert [one[0] for one in world.sink.seen] == ["snapshot", "gone", "snapshot", "diff"]


async def test_a_link_with_only_a_watch_is_probed(world: Watching) -> None:
    await world.presence.watch_presence([ROOM])
    world.server.deaf = True
    await world.sink.wait(lambda: any(one[0] == "gone" for one in world.sink.seen))


async def test_a_refused_watch_names_the_channel(world: Watching) -> None:
    world.server.answers["SUBSCRIBE"] = b"-NOPERM no access to a channel\r\n"
    with pytest.raises(SubscribeError, match="NOPERM") as refused:
        await world.presence.watch_presence([ROOM])
    assert refused.value.channels == (ROOM,)
    assert "'room'" in str(refused.value)
    del world.server.answers["SUBSCRIBE"]
    await world.presence.watch_presence([ROOM])
    assert world.sink.found("snapshot", ROOM)[-1] == SNAPSHOT


class Failing(PresenceRecorder):
    """A sink that fails at a diff."""

    def presence_diff(self, channel: str, diff: PresenceDiff) -> None:
        if diff.version == 7:
            raise RuntimeError("a bug")
        super().presence_diff(channel, diff)


async def test_an_error_of_the_sink_is_logged_and_followed_by_a_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened(Failing()) as world:
        await world.presence.watch_presence([ROOM])
        world.send(diff(6), diff(7))
        await world.sink.wait(lambda: world.sink.seen[-1][0] == "gone")
        assert "a bug" in caplog.text
        await world.server.until(lambda: bool(world.server.subscribers))
        world.send(diff(8))
        await world.sink.diffs(ROOM, 2)


class Slow(PresenceRecorder):
    """A sink that takes messages when it is free."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.free = asyncio.Event(), asyncio.Event()

    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        self.began.set()
        await self.free.wait()
        await super().deliver(batch)


@pytest.mark.parametrize("is_memory", [True, False])
async def test_a_diff_behind_a_message_that_waits_is_dropped_by_an_unwatch(
    is_memory: bool,
) -> None:
    sink = Slow()
    async with opened(sink) as world:
        broker = open_broker("memory://slow", sink) if is_memory else world.broker
        assert isinstance(broker, SupportsPresence)
        await broker.subscribe([ROOM])
        await broker.watch_presence([ROOM, "other"])
        if is_memory:
            await broker.publish([ROOM], b"hello")
            await broker.change_presence(ROOM, {"p:1": b"x"})
            await broker.change_presence("other", {"p:1": b"x"})
        else:
            (link,) = world.server.subscribers
            other = NAME.replace(b"room", b"other")
            link.writer.write(
                push(b"message", NAME[:-2], b"hello")
                + push(b"message", NAME, diff(6))
                + push(b"message", other, diff(6))
            )
        await sink.began.wait()
        await broker.unwatch_presence([ROOM])
        sink.free.set()
        await sink.diffs("other")
        assert sink.found("diff", ROOM) == []
        if is_memory:
            await broker.aclose()


async def test_changes_that_did_not_fit_in_memory_are_a_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_inbox, "INBOX_FULL", 10)
    here = PresenceRoom("memory://full-of-presence", ROOM)
    assert await here.watch() == ABSENT
    for number in range(30):  # This loop delivers nothing meanwhile.
        await here.change(**{f"n{number}": b"x"})
    await here.sink.wait(lambda: any(one[0] == "gone" for one in here.sink.seen))
    assert [one[0] for one in here.sink.seen] == ["snapshot", *["diff"] * 10, "gone"]
    here.presence.request_presence(ROOM)
    _, snapshot = await here.sink.snapshots(ROOM, 2)
    assert snapshot == await here.read()
    await here.broker.aclose()


async def test_a_broker_may_be_closed_before_a_diff_is_delivered() -> None:
    """Python would warn of a coroutine that was never awaited, which fails this test."""
    here = PresenceRoom("memory://closed-early", ROOM)
    await here.watch()
    await here.change(a=b"x")
    # It begins between the call that delivers and the task that awaits the delivery.
    await asyncio.ensure_future(here.broker.aclose())
    gc.collect()


# Scripts


Call = Callable[[SupportsPresence], Awaitable[object]]


def change(broker: SupportsPresence) -> Awaitable[object]:
    return broker.change_presence(ROOM, {"p:1": b"x"})


def lease(broker: SupportsPresence) -> Awaitable[object]:
    return broker.lease(broker.lease_servers[0], "p", LeaseAction.NEW, lease_seconds=15)


@pytest.mark.parametrize("call", [change, lease])
@pytest.mark.parametrize(
    ("answer", "unknown"),
    [
        ("-OOM command not allowed when used memory > 'maxmemory'.", False),
        ("-NOPERM User x has no permissions to run the 'evalsha' command", False),
        ("-NOREPLICAS Not enough good replicas to write.", False),
        ("-READONLY You can't write against a read only replica.", False),
        ("-BUSY a script is running", False),
        ("-LOADING the dataset is in memory", False),
        ("-NOPERM ACL failure in script: no permissions to run 'publish'", True),
        ("-ERR value is not an integer or out of range", True),
        (":5", True),
        ("*4\r\n:1\r\n:1\r\n:1\r\n:1", True),
        ("*4\r\n$8\r\nepoch678\r\n$1\r\n1\r\n*1\r\n:9\r\n*0", True),
    ],
)
async def test_an_error_says_whether_the_outcome_is_known(
    world: Watching, call: Call, answer: str, unknown: bool
) -> None:
    world.server.answers["SCRIPT"] = encode(b"sha")
    world.server.answers["EVALSHA"] = answer.encode() + b"\r\n"
    with pytest.raises(PresenceError) as failed:
        await call(world.presence)
    assert failed.value.unknown is unknown
    assert failed.value.channels == ((ROOM,) if call is change else ())
    assert ("outcome unknown" in str(failed.value)) is unknown


async def test_a_call_without_an_answer_has_an_unknown_outcome() -> None:
    async with ScriptedServer() as server:
        server.answers |= {"SCRIPT": encode(b"sha"), "EVALSHA": b""}
        broker = open_broker(f"{server.url}?publish_timeout_seconds=0.2&dead_peer_seconds=0.2")
        assert isinstance(broker, SupportsPresence)
        for call in (change, lease):
            with pytest.raises(PresenceError) as failed:
                await call(broker)
            assert failed.value.unknown
        await broker.aclose()


async def test_a_script_that_is_missing_is_loaded_and_called_again(world: Watching) -> None:
    answers = [b"-NOSCRIPT No matching script\r\n"]
    made = encode([EPOCH, b"1", [1], []])
    world.server.answers["SCRIPT"] = encode(CHANGE.sha)
    world.server.answers["EVALSHA"] = lambda *_: answers.pop() if answers else made
    found = await world.presence.change_presence(ROOM, {"p:1": b"x"})
    assert (found.epoch, found.version, found.changed) == (EPOCH, 1, 1)
    assert world.server.asked["EVALSHA"] == 2
