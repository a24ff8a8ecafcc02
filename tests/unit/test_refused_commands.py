"""A command that a server refuses for a while is sent again: no check is switched off."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from django_sockets import PublishError, open_broker
from django_sockets.broker import Broker
from django_sockets.testing.contract.base import RecordingSink, with_options
from support.scripted_server import Conversation, ScriptedServer, push

PASSING = ["BUSY a script", "LOADING the dataset", "MASTERDOWN link down", "NOPERM no permissions"]
PASSING += ["MISCONF cannot write", "ERR unknown command"]
SCHEMES = ["redis", "redis+sentinel", "redis+cluster"]
ROOM = "room"
DEAD_PEER_SECONDS = 0.6
PATIENCE_SECONDS = 15.0


def error(words: str) -> bytes:
    return f"-{words}\r\n".encode()


def url_of(server: ScriptedServer, scheme: str, **options: object) -> str:
    url = scheme + server.url.removeprefix("redis") + ("/main" if "sentinel" in scheme else "")
    quick = {"dead_peer_seconds": DEAD_PEER_SECONDS, "probe_interval_seconds": 0.1}
    return with_options(url, **{**quick, **options})


class Sink(RecordingSink):
    """Waits for gaps."""

    def gaps(self) -> int:
        return sum(what == "lost" and ROOM in named for what, named, *_ in self.seen)

    async def until_lost(self) -> None:
        async def look() -> None:
            while not self.gaps():
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(look(), PATIENCE_SECONDS)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as server:
        yield server


async def for_each_refusal(case: Callable[[ScriptedServer, str], Awaitable[None]]) -> None:
    """Run a case with each of PASSING, all at once, each on a server of its own."""

    async def run(words: str) -> None:
        async with ScriptedServer() as server:
            await case(server, words)

    outcomes = await asyncio.gather(*map(run, PASSING), return_exceptions=True)
    assert dict(zip(PASSING, outcomes, strict=True)) == dict.fromkeys(PASSING)


@contextlib.asynccontextmanager
async def subscribed(url: str) -> AsyncIterator[tuple[Broker, Sink]]:
    """A broker that receives its own messages on ROOM."""
    sink = Sink()
    broker = open_broker(url, sink)
    try:
        await broker.subscribe([ROOM])
        await broker.publish([ROOM], b"first")
        await sink.until("message", ROOM, b"first")
        yield broker, sink
    finally:
        await broker.aclose()


async def publishing(broker: Broker) -> str:
    """Publish until a publish fails; returns the reason."""
    for number in itertools.count():
        try:
            await broker.publish([ROOM], b"%d" % number)
        except PublishError as exc:
            if exc.failed:
                return str(exc)
        await asyncio.sleep(0.01)
    raise AssertionError


async def until_refused(broker: Broker) -> str:
    return await asyncio.wait_for(publishing(broker), PATIENCE_SECONDS)


@contextlib.asynccontextmanager
async def traffic(broker: Broker) -> AsyncIterator[None]:
    """Publish all the time."""
    task = asyncio.create_task(publishing(broker))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def carrying(server: ScriptedServer) -> set[Conversation]:
    """The conversations that carry ROOM."""
    return {one for one in server.subscribers if any(b"{room}" in name for name in one.names)}


# A server that is a replica now


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_process_that_only_publishes_notices_a_demotion(
    server: ScriptedServer, scheme: str
) -> None:
    broker = open_broker(url_of(server, scheme), Sink())
    await broker.publish([ROOM], b"x")
    server.role = b"slave"
    assert "replica" in await until_refused(broker)
    server.role = b"master"
    await broker.publish([ROOM], b"x")
    await broker.aclose()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_refused_role_is_asked_again(scheme: str) -> None:
    async def one(server: ScriptedServer, words: str) -> None:
        server.answers["ROLE"] = error(words)
        broker = open_broker(url_of(server, scheme), Sink())
        await broker.publish([ROOM], b"x")
        await server.until(lambda: server.answered["ROLE"] > 1)
        server.answers.clear()
        server.role = b"slave"
        assert "replica" in await until_refused(broker)
        await broker.aclose()

    await for_each_refusal(one)


async def test_a_refused_role_is_asked_again_by_subscribers() -> None:
    async def one(server: ScriptedServer, words: str) -> None:
        # The keepalive, which asks, too, is far away.
        async with subscribed(url_of(server, "redis", dead_peer_seconds=1000)) as (_, sink):
            server.answers["ROLE"] = error(words)
            await server.until(lambda: server.answered["ROLE"] > 0)
            server.answers.clear()
            server.role = b"slave"
            await sink.until_lost()

    await for_each_refusal(one)


# A name that leads to another server


def no_probe(_: Conversation, command: list[bytes]) -> bytes | None:
    """Refuse the probe's channel, so that only the run id can show the change."""
    return error("NOPERM") if any(b":probe:" in name for name in command[1:]) else None


def cut_publishers(server: ScriptedServer) -> None:
    for conversation in server.publishers:
        conversation.cut()


@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel"])
async def test_a_publishing_link_that_comes_back_elsewhere_is_a_gap(
    server: ScriptedServer, scheme: str
) -> None:
    server.answers["SUBSCRIBE"] = no_probe
    url = url_of(server, scheme, probe_interval_seconds=1000)
    async with subscribed(url) as (broker, sink):
        server.run_id = "2" * 40
        cut_publishers(server)
        async with traffic(broker):
            await sink.until_lost()
        await broker.publish([ROOM], b"heard again")
        await sink.until("message", ROOM, b"heard again")


async def test_a_refused_run_id_is_asked_again() -> None:
    async def one(server: ScriptedServer, words: str) -> None:
        server.answers.update({"SUBSCRIBE": no_probe, "INFO": error(words)})
        async with subscribed(url_of(server, "redis")) as (broker, sink):
            del server.answers["INFO"]
            asked = server.asked["INFO"]
            await server.until(lambda: server.asked["INFO"] > asked + 1)
            await asyncio.sleep(0.1)  # Until the answers are there.
            server.run_id = "2" * 40
            cut_publishers(server)
            async with traffic(broker):
                await sink.until_lost()

    await for_each_refusal(one)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_rotation_to_another_server_is_a_gap(server: ScriptedServer, scheme: str) -> None:
    # The probe would notice it, but later.
    options = {"connection_max_age_seconds": 0.5, "probe_interval_seconds": 1000}
    async with subscribed(url_of(server, scheme, **options)) as (broker, sink):
        before = carrying(server)
        await server.until(lambda: not before & server.conversations)
        await broker.publish([ROOM], b"rotated")
        await sink.until("message", ROOM, b"rotated")
        assert not sink.gaps()
        server.run_id = "2" * 40
        await sink.until_lost()
        await broker.publish([ROOM], b"heard again")
        await sink.until("message", ROOM, b"heard again")


# The probe's own channel


async def test_a_refused_probe_is_asked_again() -> None:
    async def one(server: ScriptedServer, words: str) -> None:
        refused = asyncio.Event()

        def refuse(_: Conversation, command: list[bytes]) -> bytes | None:
            if not any(b":probe:" in name for name in command[1:]):
                return None
            if len(command) > 2:
                return error("NOPERM")  # As if one of them were forbidden: each is asked for alone.
            refused.set()
            return error(words)

        server.answers["SUBSCRIBE"] = refuse
        async with subscribed(url_of(server, "redis")) as (_, sink):
            await asyncio.wait_for(refused.wait(), PATIENCE_SECONDS)
            server.answers.clear()
            server.deaf = True
            await sink.until_lost()

    await for_each_refusal(one)


async def test_a_busy_server_is_waited_for(server: ScriptedServer) -> None:
    server.answers["SUBSCRIBE"] = error("BUSY a script")
    sink = Sink()
    broker = open_broker(url_of(server, "redis"), sink)
    waiting = asyncio.create_task(broker.subscribe([ROOM]))
    await server.until(lambda: server.answered["SUBSCRIBE"] > 2)
    server.answers.clear()
    await waiting
    await broker.aclose()


async def test_a_refused_look_at_the_commands_changes_nothing(server: ScriptedServer) -> None:
    """A cluster from before Redis 7 is not taken for a newer one while it is busy."""
    server.answers["COMMAND"] = b"*1\r\n_\r\n"
    server.answers["SSUBSCRIBE"] = server.answers["SPUBLISH"] = error("ERR unknown command")
    async with subscribed(url_of(server, "redis+cluster")) as (broker, sink):
        for words in PASSING:
            server.answers["COMMAND"] = error(words)
            asked = server.asked["COMMAND"]
            broker.refresh_soon()  # type: ignore[attr-defined]
            await server.until(lambda asked=asked: server.asked["COMMAND"] > asked)
        await broker.publish([ROOM], b"last")
        await sink.until("message", ROOM, b"last")
        assert not sink.gaps()
        assert not server.asked["SSUBSCRIBE"]


# PING


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("also", ["", "UNSUBSCRIBE", "SUNSUBSCRIBE"])
async def test_a_refused_ping_is_an_answer(scheme: str, also: str) -> None:
    async def one(server: ScriptedServer, words: str) -> None:
        server.answers["PING"] = error(words)
        if also:  # The names are removed in any case.
            server.answers[also] = error("NOPERM")
        async with subscribed(url_of(server, scheme)) as (broker, sink):
            before = carrying(server)
            others = [f"other:{number}" for number in range(5)]
            for _ in range(3):
                await asyncio.wait_for(broker.subscribe(others), 5)
                await broker.unsubscribe(others)
            pings = server.answered["PING"]
            # The keepalive would take a connection without a reply to UNSUBSCRIBE for dead.
            await asyncio.sleep(2 * DEAD_PEER_SECONDS)
            assert server.answered["PING"] > pings
            assert carrying(server) == before
            await broker.publish([ROOM], b"last")
            await sink.until("message", ROOM, b"last")
            assert not sink.gaps()

    await for_each_refusal(one)


async def test_a_name_that_the_server_ends_by_itself_does_not_end_the_wait(
    server: ScriptedServer,
) -> None:
    """This happens when a slot moves during an unsubscribe."""

    def moved(conversation: Conversation, command: list[bytes]) -> bytes:
        return push(b"sunsubscribe", command[1], 0) + error("MOVED 1 127.0.0.1:1")

    async with subscribed(url_of(server, "redis+cluster")) as (broker, sink):
        server.answers["SUNSUBSCRIBE"] = moved
        before = carrying(server)
        await broker.subscribe(["other"])
        await broker.unsubscribe(["other"])
        await asyncio.sleep(2 * DEAD_PEER_SECONDS)
        assert carrying(server) == before
        await broker.publish([ROOM], b"last")
        await sink.until("message", ROOM, b"last")
        assert not sink.gaps()
