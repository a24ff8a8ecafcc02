"""After a server has sent malformed replies for a while, everything works again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from django_sockets import open_broker
from django_sockets.broker import Broker
from django_sockets.errors import BrokerError
from django_sockets.testing.contract.base import RecordingSink, with_options
from django_sockets.testing.ports import HOST
from support.scripted_server import ScriptedServer, encode, push

NONSENSE = {
    "three replies instead of one": b"+A\r\n+B\r\n+C\r\n",
    "a number": b":5\r\n",
    "nothing": b"_\r\n",
    "an empty list": b"*0\r\n",
    "a list of all sorts": b"*3\r\n:1\r\n*0\r\n_\r\n",
    "an enormous text": b"$99999999999\r\n",
    "an enormous list": b"*4294967295\r\n",
    "a list as a key": b"%1\r\n*0\r\n+x\r\n",
    "bytes that are no UTF-8": encode(b"\xff\xfe"),
    "a list of bytes that are no UTF-8": encode([b"\xff\xfe", b"\xff\xfe"]),
    "an error that is no UTF-8": b"-\xff\xfe\r\n",
    "busy": b"-BUSY running a script\r\n",
    "a redirection to nowhere": b"-MOVED here there:everywhere\r\n",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "silence": b"",
    "a push of a number": b">1\r\n:5\r\n",
    "a push without a name": push(b"message"),
    "a message on a list": push(b"message", [], b"x"),
    "an acknowledgement of a number": push(b"subscribe", 7, 1),
    "an end of a list": push(b"unsubscribe", [], 1),
}
"""What is sent in place of an answer; all of one stage at once, each by a server of its own."""

OPTIONS = {
    "dead_peer_seconds": 0.6,
    "probe_interval_seconds": 0.1,
    "connect_timeout_seconds": 1,
    "publish_timeout_seconds": 1,
    "subscribe_timeout_seconds": 20,
}
ROOM = "room"
PATIENCE_SECONDS = 15.0

# When connecting, and later: the connections are cut, so that it is asked.
CONNECTING = ("HELLO", "ROLE", "INFO")
LATER = ("SUBSCRIBE", "UNSUBSCRIBE", "PING", "PUBLISH")
UNASKED = "unasked"
"""It is sent on every connection, by itself."""
ONE_NODE = [("redis://", verb) for verb in (*CONNECTING, *LATER, UNASKED)]
SENTINEL = [
    ("redis+sentinel://", stage)
    for stage in ("SENTINEL MASTER", "SENTINEL GET-MASTER-ADDR-BY-NAME", "SUBSCRIBE +SWITCH-MASTER")
]
CLUSTER = [
    ("redis+cluster://", stage)
    for stage in (
        "CLUSTER SLOTS", "CLUSTER INFO", "COMMAND", "SSUBSCRIBE", "SUNSUBSCRIBE", "SPUBLISH",
    )
]  # fmt: skip


class Sink(RecordingSink):
    """Waits for a gap that names a channel, perhaps among others."""

    async def until_lost(self, channel: str) -> None:
        while not any(what == "lost" and channel in named for what, named, *_ in self.seen):
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), PATIENCE_SECONDS)


def url_of(server: ScriptedServer, scheme: str) -> str:
    rest = server.url.removeprefix("redis://") + ("/main" if "sentinel" in scheme else "")
    return with_options(scheme + rest, **OPTIONS)


async def until_heard(broker: Broker, sink: Sink, channel: str) -> None:
    """Publish until something arrives."""
    while True:
        payload = uuid.uuid4().bytes
        with contextlib.suppress(BrokerError):
            await broker.publish([channel], payload)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(sink.until("message", channel, payload), 0.5)
            return


async def survived(scheme: str, stage: str, nonsense: bytes) -> None:
    sink = Sink()
    async with ScriptedServer() as server:
        broker = open_broker(url_of(server, scheme), sink)
        try:
            await broker.subscribe([ROOM])
            await asyncio.wait_for(until_heard(broker, sink, ROOM), PATIENCE_SECONDS)
            carrying = [one for one in server.subscribers if any(b"room" in n for n in one.names)]

            server.answers[stage] = nonsense
            if stage == UNASKED:
                for conversation in server.conversations:
                    conversation.writer.write(nonsense)
                server.answered[stage] += 1
            elif "UNSUBSCRIBE" in stage:
                await broker.subscribe(["other"])
                await broker.unsubscribe(["other"])
            elif stage not in ("PING", "PUBLISH", "SPUBLISH"):
                server.cut()
            with contextlib.suppress(BrokerError):
                await broker.publish([ROOM], b"meanwhile")
            await server.until(lambda: server.answered[stage] > 0)
            await asyncio.sleep(0.1)  # It may be sent a few times more.
            server.answers.clear()

            await asyncio.wait_for(broker.subscribe(["new"]), PATIENCE_SECONDS)
            for channel in (ROOM, "new"):
                await asyncio.wait_for(until_heard(broker, sink, channel), PATIENCE_SECONDS)
            if not server.conversations.issuperset(carrying):
                await sink.until_lost(ROOM)
        finally:
            await asyncio.wait_for(broker.aclose(), 5)


class Clumsy(Sink):
    """Raises an unexpected error, once in each of its methods."""

    def __init__(self) -> None:
        super().__init__()
        self.raised: set[str] = set()

    def stumble(self, where: str) -> None:
        if where not in self.raised:
            self.raised.add(where)
            raise TypeError(where)

    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        self.stumble("deliver")
        await super().deliver(batch)

    def lost(self, channels: Sequence[str], reason: str) -> None:
        self.stumble("lost")
        super().lost(channels, reason)


@pytest.mark.parametrize("scheme", ["memory", "fakeredis", "redis", "redis+cluster"])
async def test_an_error_of_a_subscriber_is_a_gap_and_no_end(
    scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Clumsy()
    async with ScriptedServer() as server:
        url = f"{scheme}://{HOST}:{server.port}"
        broker = open_broker(with_options(url, **OPTIONS), sink)
        await broker.subscribe([ROOM])
        await broker.publish([ROOM], b"lost")
        await asyncio.wait_for(until_heard(broker, sink, ROOM), PATIENCE_SECONDS)
        if scheme != "memory":  # There the one that raised was the gap.
            await sink.until_lost(ROOM)
        await broker.aclose()
    assert "deliver" in sink.raised
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors
    assert all(record.exc_info for record in errors)


@pytest.mark.parametrize(("scheme", "stage"), ONE_NODE + SENTINEL + CLUSTER)
async def test_nonsense_is_survived(
    scheme: str, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "django_sockets")
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: complaints.append(about))
    before = asyncio.all_tasks()
    cases = [survived(scheme, stage, nonsense) for nonsense in NONSENSE.values()]
    outcomes = await asyncio.gather(*cases, return_exceptions=True)
    failed = {
        name: outcome
        for name, outcome in zip(NONSENSE, outcomes, strict=True)
        if outcome is not None
    }
    assert not failed
    assert complaints == []
    assert asyncio.all_tasks() == before
