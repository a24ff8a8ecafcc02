"""Servers that are demoted, replaced under their name, or whose ACL forbids most commands."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import uuid
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator

import pytest

from django_sockets import PublishError, open_broker, open_hub
from django_sockets.testing.contract.base import RecordingSink, with_options, with_password
from django_sockets.testing.contract.faults import eventually, quick
from django_sockets.testing.ledger import listening
from django_sockets.testing.ports import HOST
from django_sockets.testing.proxy import FaultProxy
from django_sockets.testing.servers import CacheServer, ValkeyServer

needs_glide = pytest.mark.skipif(
    importlib.util.find_spec("glide") is None, reason="valkey-glide is not installed"
)
DRIVERS = ["redis", pytest.param("glide", marks=needs_glide)]
PATIENCE_SECONDS = 10.0


@pytest.fixture
def room() -> str:
    return f"room:{uuid.uuid4().hex}"


async def until_refused(url: str, room: str, server: CacheServer) -> str:
    """Publish while the server is demoted; returns the error of the first refused publish."""
    async with open_hub(url) as hub:

        async def go_on() -> str:
            while True:
                try:
                    await hub.publish(room, b"x")
                except PublishError as exc:
                    if exc.failed:
                        return str(exc)
                await asyncio.sleep(0.01)

        await hub.publish(room, b"x")
        await to_thread(server.execute, "REPLICAOF", HOST, "1")
        try:
            problem = await asyncio.wait_for(go_on(), PATIENCE_SECONDS)
        finally:
            await to_thread(server.execute, "REPLICAOF", "NO", "ONE")
        await hub.publish(room, b"x")
    return problem


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_process_that_only_publishes_notices_that_its_server_is_a_replica(
    fresh_valkey_server: CacheServer, room: str, driver: str
) -> None:
    url = quick(fresh_valkey_server.url, driver=driver)
    assert "replica" in await until_refused(url, room, fresh_valkey_server)


async def test_over_tls_too(fresh_redis_tls_server: CacheServer, room: str) -> None:
    url = quick(fresh_redis_tls_server.url)
    assert "replica" in await until_refused(url, room, fresh_redis_tls_server)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_role_that_may_be_asked_later_is_asked_again(
    fresh_valkey_server: CacheServer, room: str, driver: str
) -> None:
    server = fresh_valkey_server
    rules = ("on", ">secret", "~*", "&*", "+@all", "-role")
    await to_thread(server.execute, "ACL", "SETUSER", "late", *rules)
    url = quick(with_password(server.url, "late", "secret"), driver=driver)
    async with open_hub(url) as hub:
        await hub.publish(room, b"x")

        async def was_refused() -> bool:
            stats = await to_thread(server.execute, "INFO", "commandstats")
            line = next((one for one in stats.splitlines() if one.startswith("cmdstat_role:")), "")
            return int(line.rpartition("rejected_calls=")[2].split(",")[0] or 0) > 1

        await eventually(was_refused, True)
        await to_thread(server.execute, "ACL", "SETUSER", "late", "+role")
        assert "replica" in await until_refused(url, room, server)


@pytest.mark.parametrize("server_name", ["valkey_server", "redis_server"])
async def test_a_user_that_may_do_little_loses_no_connection(
    request: pytest.FixtureRequest, room: str, server_name: str
) -> None:
    server: CacheServer = request.getfixturevalue(server_name)

    async def one(*without: str) -> None:
        name = uuid.uuid4().hex
        rules = ("on", ">secret", "~*", "&*", "+@all", *without)
        await to_thread(server.execute, "ACL", "SETUSER", name, *rules)
        url = quick(with_password(server.url, name, "secret"))

        async def connections() -> set[str]:
            lines = (await to_thread(server.execute, "CLIENT", "LIST")).splitlines()
            return {line.split()[0] for line in lines if f" user={name} " in line}

        try:
            async with open_hub(url) as hub, listening(hub, room) as heard:
                await hub.publish(room, name.encode())
                await heard.until_payload(name.encode())
                before = await connections()
                for _ in range(3):
                    async with hub.subscribe(f"{room}:2"):
                        pass
                await asyncio.sleep(1.5)  # More than `dead_peer_seconds`.
                assert await connections() == before, without
                assert heard.gaps == [], without
        finally:
            await to_thread(server.execute, "ACL", "DELUSER", name)

    forbidden = [("-ping",), ("-unsubscribe",), ("-ping", "-unsubscribe"), ("-role", "-info")]
    await asyncio.gather(*(one(*without) for without in forbidden))


@needs_glide
async def test_glide_connects_without_ping(valkey_server: CacheServer, room: str) -> None:
    name = uuid.uuid4().hex
    rules = ("on", ">secret", "~*", "&*", "+@all", "-ping")
    await to_thread(valkey_server.execute, "ACL", "SETUSER", name, *rules)
    url = quick(with_password(valkey_server.url, name, "secret"), driver="glide")
    async with open_hub(url) as hub:
        await hub.publish(room, b"x")
    await to_thread(valkey_server.execute, "ACL", "DELUSER", name)


# A name that leads to another server


@pytest.fixture
def pair() -> Iterator[tuple[CacheServer, CacheServer]]:
    with ValkeyServer() as first, ValkeyServer() as second:
        yield first, second


class Name:
    """A name that leads to one server and then to another. Open connections keep their server."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy

    def url(self, **options: object) -> str:
        # The probe would notice it as well, later.
        return with_options(
            f"redis://{HOST}:{self._proxy.port}", **{"probe_interval_seconds": 1000, **options}
        )

    def move(self, server: CacheServer) -> None:
        self._proxy._target = (HOST, server.port)


@pytest.fixture
async def name(pair: tuple[CacheServer, CacheServer]) -> AsyncIterator[Name]:
    async with FaultProxy(HOST, pair[0].port) as proxy:
        yield Name(proxy)


async def test_a_rotation_over_a_name_that_moved_is_a_gap(
    pair: tuple[CacheServer, CacheServer], name: Name, room: str
) -> None:
    sink = RecordingSink()
    broker = open_broker(name.url(connection_max_age_seconds=1), sink)
    other = open_broker(pair[1].url, RecordingSink())
    await broker.subscribe([room])
    name.move(pair[1])
    await sink.until("lost", (room,))
    await other.publish([room], b"heard")
    await sink.until("message", room, b"heard")
    for each in (broker, other):
        await each.aclose()


async def test_a_rotation_of_the_publishing_connection_alone_is_a_gap(
    pair: tuple[CacheServer, CacheServer], name: Name, room: str
) -> None:
    sink = RecordingSink()
    broker = open_broker(name.url(), sink)
    await broker.subscribe([room])
    await broker.publish([room], b"first")
    await sink.until("message", room, b"first")
    name.move(pair[1])
    await broker._node.pipeline.rotate()  # type: ignore[attr-defined]
    await broker.publish([room], b"to the other server")
    await sink.until("lost", (room,))
    await broker.publish([room], b"heard")
    await sink.until("message", room, b"heard")
    await broker.aclose()


async def test_a_publishing_connection_that_is_cut_and_comes_back_elsewhere_is_a_gap(
    pair: tuple[CacheServer, CacheServer], name: Name, room: str
) -> None:
    sink = RecordingSink()
    broker = open_broker(name.url(), sink)
    await broker.subscribe([room])
    await broker.publish([room], b"first")
    name.move(pair[1])
    await to_thread(pair[0].execute, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def published() -> bool:
        with contextlib.suppress(PublishError):
            await broker.publish([room], b"to the other server")
            return True
        return False

    await eventually(published, True)
    await sink.until("lost", (room,))
    await broker.aclose()


@needs_glide
async def test_another_driver_follows_a_name_that_moved(
    pair: tuple[CacheServer, CacheServer], name: Name, room: str
) -> None:
    """Its connection has no age, and its server cannot be compared with that of the other."""
    options = {"driver": "glide", "connection_max_age_seconds": 3, "probe_interval_seconds": 0.1}
    sink = RecordingSink()
    broker = open_broker(name.url(**options, dead_peer_seconds=0.5), sink)
    await broker.subscribe([room])
    await broker.publish([room], b"first")
    await sink.until("message", room, b"first")
    name.move(pair[1])
    await sink.until("lost", (room,))

    async def heard() -> bool:
        with contextlib.suppress(PublishError):
            await broker.publish([room], b"heard")
        return ("message", room, b"heard") in sink.seen

    await eventually(heard, True, within_seconds=PATIENCE_SECONDS)
    await broker.aclose()
