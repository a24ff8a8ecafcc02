"""How replies from the history reach a sink that takes messages at once, and one that waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from django_sockets.broker import HistoryItem, SupportsHistory
from django_sockets.conf import load_config
from django_sockets.history import HistoryStatus, Position
from django_sockets.registry import open_broker
from django_sockets.testing.contract.history import HistoryRecorder
from support.scripted_server import ScriptedServer, encode, push

ROOM, NAME = "kept:1", b"django_sockets:{kept:1}"
EPOCH, TAG = b"epoch678", b"tag of 16 bytes!"
PAGE = encode([EPOCH, b"5", TAG, b"a" * 40, b"0" * 40, 1, []])
NEWEST = Position(EPOCH, 5, TAG, bytes.fromhex("aa" * 8))
RULES = {"kept:": {"messages": 10, "seconds": 60}}


class EagerRecorder(HistoryRecorder):
    """Takes messages within the call, as the hub does."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[str] = []

    def deliver_now(self, batch: Sequence[tuple[str, bytes]]) -> None:
        self.batches.append("now")
        self.seen += [("message", *item) for item in batch]
        self._changed.set()

    async def deliver_with_history(self, batch: Sequence[HistoryItem]) -> None:
        self.batches.append("with history")
        await super().deliver_with_history(batch)


class SlowRecorder(HistoryRecorder):
    """Takes replies when `free` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.free = asyncio.Event(), asyncio.Event()

    async def deliver_with_history(self, batch: Sequence[HistoryItem]) -> None:
        self.began.set()
        await self.free.wait()
        await super().deliver_with_history(batch)


def opened(url: str, sink: HistoryRecorder) -> SupportsHistory:
    broker = open_broker(load_config({"url": url, "history": RULES}).url, sink)
    assert isinstance(broker, SupportsHistory)
    return broker


async def test_a_reply_stands_between_the_messages_of_its_packet() -> None:
    async with ScriptedServer() as server:
        sink = EagerRecorder()
        broker = opened(server.url, sink)
        server.answers |= {"SCRIPT": encode(b"sha"), "EVALSHA": PAGE}
        await broker.subscribe_with_history({ROOM: NEWEST})
        before, after = push(b"message", NAME, b"before"), push(b"message", NAME, b"after")
        server.answers["EVALSHA"] = before + PAGE + after
        broker.request_history(ROOM, NEWEST)
        await sink.until("message", ROOM, b"after")
        (link,) = server.subscribers
        link.writer.write(push(b"message", NAME, b"later"))
        await sink.until("message", ROOM, b"later")
        kinds = [one[0] if one[0] == "reply" else one[2] for one in sink.seen]
        assert kinds == ["reply", b"before", "reply", b"after", b"later"]
        # Only the batches with a reply take the longer way.
        assert sink.batches == ["with history", "with history", "now"]
        await broker.aclose()


@pytest.mark.parametrize("is_memory", [True, False])
async def test_the_call_returns_when_the_sink_has_taken_the_reply(is_memory: bool) -> None:
    async with ScriptedServer() as server:
        server.answers |= {"SCRIPT": encode(b"sha"), "EVALSHA": PAGE}
        sink = SlowRecorder()
        broker = opened("memory://history-slow" if is_memory else server.url, sink)
        call = asyncio.ensure_future(broker.subscribe_with_history({ROOM: None}))
        await sink.began.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not call.done()
        sink.free.set()
        await call
        assert [one[:2] for one in sink.seen] == [("reply", ROOM)]
        await broker.aclose()


async def test_no_reply_arrives_after_an_unsubscribe_before_the_delivery_begins() -> None:
    sink = HistoryRecorder()
    broker = opened("memory://history-left", sink)
    await broker.subscribe_with_history({ROOM: None, "kept:2": None})
    sink.seen.clear()
    broker.request_history(ROOM, None)
    await asyncio.sleep(0)  # The inbox has been read, and the delivery begins in the next turn.
    await broker.unsubscribe([ROOM])
    broker.request_history("kept:2", None)
    (reply,) = await sink.replies("kept:2")
    assert reply.status is not HistoryStatus.UNAVAILABLE
    assert {one[1] for one in sink.seen} == {"kept:2"}
    await broker.aclose()


async def test_with_rules_the_event_loop_publishes_for_all_threads() -> None:
    """A kept message is published by a script, which a thread could not run."""
    plain = open_broker(load_config("redis://localhost:1").url, HistoryRecorder())
    kept = opened("redis://localhost:1", HistoryRecorder())
    assert getattr(plain, "thread_publisher", None) is not None
    assert getattr(kept, "thread_publisher", None) is None
    await plain.aclose()
    await kept.aclose()


async def test_a_reply_that_its_connection_could_not_deliver_is_read_again() -> None:
    """The next reply of the same packet ends the connection before the first one is delivered."""
    other = "kept:2"
    async with ScriptedServer() as server:
        sink = HistoryRecorder()
        broker = opened(server.url, sink)
        server.answers |= {"SCRIPT": encode(b"sha"), "EVALSHA": PAGE}
        await broker.subscribe_with_history({ROOM: NEWEST, other: NEWEST})
        answers = [b"", PAGE + b"-MOVED 1 127.0.0.1:1\r\n"]
        server.answers["EVALSHA"] = lambda *_: answers.pop(0) if answers else PAGE
        broker.request_history(ROOM, NEWEST)
        broker.request_history(other, NEWEST)
        for channel in (ROOM, other):
            assert len(await sink.replies(channel, 2)) == 2
        kinds = [one[0] for one in sink.seen]
        assert kinds == ["reply", "reply", "lost", "reply", "reply"]
        await broker.aclose()


async def test_a_call_waits_for_the_reply_that_is_read_again() -> None:
    async with ScriptedServer() as server:
        sink = HistoryRecorder()
        broker = opened(server.url, sink)
        answers = [b"", PAGE + b"-MOVED 1 127.0.0.1:1\r\n"]
        server.answers |= {"SCRIPT": encode(b"sha")}
        server.answers["EVALSHA"] = lambda *_: answers.pop(0) if answers else PAGE
        await broker.subscribe_with_history({ROOM: NEWEST, "kept:2": NEWEST})
        assert {one[1] for one in sink.seen if one[0] == "reply"} == {ROOM, "kept:2"}
        await broker.aclose()


async def test_a_reply_that_was_not_delivered_is_not_read_again_after_an_unsubscribe() -> None:
    async with ScriptedServer() as server:
        sink = SlowRecorder()
        broker = opened(server.url, sink)
        sink.free.set()
        server.answers |= {"SCRIPT": encode(b"sha"), "EVALSHA": PAGE}
        await broker.subscribe_with_history({ROOM: NEWEST, "kept:2": NEWEST})
        sink.free.clear()
        sink.began.clear()
        broker.request_history("kept:2", NEWEST)
        await sink.began.wait()  # The connection waits for the sink, and then has the next reply.
        broker.request_history(ROOM, NEWEST)
        await server.until(lambda: server.asked["EVALSHA"] == 4)
        await broker.unsubscribe([ROOM])
        (link,) = server.subscribers
        link.cut()
        sink.free.set()
        await server.until(lambda: server.asked["SUBSCRIBE"] == 2)
        await broker.subscribe_with_history({"kept:3": None})
        assert server.asked["EVALSHA"] == 5
        await broker.aclose()
