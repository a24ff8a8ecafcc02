"""The servers and the proxy of the test kit do to a client what the tests rely on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_sockets.testing.proxy import FaultProxy
from django_sockets.testing.servers import CacheServer, ValkeyServer

WAIT_SECONDS = 0.1
"""How long silence is listened to."""


def stranger_to(server: CacheServer, **options: Any) -> redis.Redis:
    """A client that knows only the port, and asks once."""
    return redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0), **options)


def test_a_killed_server_comes_back_on_the_same_port(fresh_valkey_server: CacheServer) -> None:
    url, pid = fresh_valkey_server.url, fresh_valkey_server.pid
    fresh_valkey_server.kill()
    with pytest.raises(redis.ConnectionError):
        fresh_valkey_server.execute("PING")
    fresh_valkey_server.start()
    assert fresh_valkey_server.execute("PING") == "PONG"
    assert (fresh_valkey_server.url, fresh_valkey_server.pid != pid) == (url, True)


def test_a_paused_server_answers_only_after_resume(fresh_valkey_server: CacheServer) -> None:
    fresh_valkey_server.pause()
    client = stranger_to(fresh_valkey_server, socket_timeout=WAIT_SECONDS)
    with pytest.raises(redis.TimeoutError):
        client.ping()
    client.close()
    fresh_valkey_server.resume()
    assert fresh_valkey_server.execute("PING") == "PONG"


def test_a_tls_server_is_verified_against_its_own_authority(redis_tls_server: CacheServer) -> None:
    assert redis_tls_server.execute("PING") == "PONG"
    stranger = stranger_to(redis_tls_server, host="localhost", ssl=True)
    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        stranger.ping()
    stranger.close()


def test_a_password_is_asked_for() -> None:
    with ValkeyServer(password="opensesame") as server:
        assert server.execute("PING") == "PONG"
        stranger = stranger_to(server)
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()
        stranger.close()


def test_a_server_that_cannot_start_says_why() -> None:
    server = ValkeyServer(config={"maxmemory": "a lot"})
    with pytest.raises(RuntimeError, match="did not start"):
        server.start()
    server.stop()


class Client:
    """A client of an echo server behind the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def echoes(self, text: bytes) -> bool:
        self.writer.write(text)
        try:
            return await asyncio.wait_for(self.reader.readexactly(len(text)), WAIT_SECONDS) == text
        except asyncio.TimeoutError:
            return False


@pytest.fixture
async def proxy() -> Any:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.clear()
        while data := await reader.read(1000):
            received.append(data)
            writer.write(data)
        writer.close()

    received: list[bytes] = []
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        proxy.received = received  # type: ignore[attr-defined]
        yield proxy
    server.close()
    await server.wait_closed()


async def connect(proxy: FaultProxy) -> Client:
    return Client(*await asyncio.open_connection("127.0.0.1", proxy.port))


@pytest.mark.parametrize(
    ("direction", "arrives"), [("both", False), ("reads", True), ("writes", False)]
)
async def test_a_blackholed_connection_is_silent_while_a_new_one_works(
    proxy: Any, direction: Any, arrives: bool
) -> None:
    old = await connect(proxy)
    assert await old.echoes(b"before")
    proxy.blackhole(direction)
    assert not await old.echoes(b"swallowed")
    assert (b"swallowed" in proxy.received) is arrives
    assert not old.reader.at_eof()
    new = await connect(proxy)
    assert await new.echoes(b"new")
    assert proxy.connections == 2
    for client in (old, new):
        client.writer.close()


async def test_a_dropped_connection_is_reset_and_a_refusing_proxy_takes_none(proxy: Any) -> None:
    client = await connect(proxy)
    assert await client.echoes(b"before")
    proxy.drop()
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await client.echoes(b"after")
    proxy.refuse()
    refused = await connect(proxy)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await refused.echoes(b"anything")
    for each in (client, refused):
        each.writer.close()


async def test_a_closed_proxy_leaves_no_task() -> None:
    tasks = asyncio.all_tasks()
    proxy = FaultProxy("127.0.0.1", 9)
    async with proxy:
        client = await connect(proxy)
    client.writer.close()
    assert asyncio.all_tasks() == tasks
