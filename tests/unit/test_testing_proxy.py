"""The proxy of the test kit affects connections as the fault tests expect."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from django_sockets.testing.proxy import Direction, FaultProxy
from django_sockets.testing.servers import CacheServer
from django_sockets.url import BrokerURL

SILENCE_SECONDS = 0.1
WAIT_SECONDS = 5.0


class Peer:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def says(self, text: bytes) -> None:
        self.writer.write(text)

    async def hears(self, text: bytes) -> bool:
        """Raises what ends the connection."""
        return await asyncio.wait_for(self.reader.readexactly(len(text)), WAIT_SECONDS) == text

    async def hears_nothing(self) -> bool:
        try:
            await asyncio.wait_for(self.reader.read(1), SILENCE_SECONDS)
        except asyncio.TimeoutError:
            return True
        return False

    async def sees_the_end(self) -> bool:
        return await asyncio.wait_for(self.reader.read(1), WAIT_SECONDS) == b""

    async def is_reset(self) -> bool:
        with pytest.raises(ConnectionResetError):
            await self.sees_the_end()
        return True

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Line:
    """A proxy, its target, and the connections through it."""

    def __init__(self) -> None:
        self.proxy: FaultProxy
        self._accepted: asyncio.Queue[Peer] = asyncio.Queue()
        self._peers: list[Peer] = []

    def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted.put_nowait(Peer(reader, writer))
        self._peers.append(Peer(reader, writer))

    async def call(self) -> Peer:
        """The client's end of a new connection, which may not have reached the target yet."""
        client = Peer(*await asyncio.open_connection("127.0.0.1", self.proxy.port))
        self._peers.append(client)
        return client

    async def connect(self) -> tuple[Peer, Peer]:
        """The client's end and the target's."""
        client = await self.call()
        return client, await asyncio.wait_for(self._accepted.get(), WAIT_SECONDS)

    async def hang_up(self) -> None:
        for peer in self._peers:
            if not peer.writer.is_closing():
                peer.writer.transport.abort()
            with contextlib.suppress(OSError):
                await peer.writer.wait_closed()


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    line = Line()
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
    server = await asyncio.start_server(line.accepted, "127.0.0.1", 0)
    async with FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as line.proxy:
        yield line
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert line.proxy.connections == 0
    server.close()
    await line.hang_up()
    await server.wait_closed()
    assert problems == []


async def works(client: Peer, target: Peer) -> bool:
    client.says(b"ask")
    heard = await target.hears(b"ask")
    target.says(b"answer")
    return heard and await client.hears(b"answer")


async def test_a_connection_is_carried_to_its_end(line: Line) -> None:
    client, target = await line.connect()
    assert await works(client, target)
    client.writer.write_eof()
    assert await target.sees_the_end()
    last_words = bytes(range(256)) * 40_000  # More than the buffers on their way hold.
    target.says(last_words)
    target.close()
    await asyncio.sleep(SILENCE_SECONDS)  # A slow reader loses nothing, either.
    assert await client.hears(last_words)
    assert await client.sees_the_end()


async def test_a_reset_is_carried_as_a_reset(line: Line) -> None:
    client, target = await line.connect()
    assert await works(client, target)
    target.reset()
    assert await client.is_reset()


async def test_megabytes_come_whole_and_in_order_in_both_directions(line: Line) -> None:
    client, target = await line.connect()
    data = bytes(range(256)) * 40_000
    client.says(data)
    target.says(data)
    assert all(await asyncio.gather(client.hears(data), target.hears(data)))


async def test_a_client_that_does_not_read_holds_its_target_back(line: Line) -> None:
    _, target = await line.connect()
    sent_bytes = 0

    async def flood() -> None:
        nonlocal sent_bytes
        while sent_bytes < 1 << 28:
            target.says(bytes(1 << 20))
            await target.writer.drain()
            sent_bytes += 1 << 20

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(flood(), 1.0)
    assert sent_bytes < 1 << 26


@pytest.mark.parametrize("direction", ["both", "reads", "writes"])
async def test_a_blackholed_connection_gets_nothing_while_a_new_one_works(
    line: Line, direction: Direction
) -> None:
    client, target = await line.connect()
    assert await works(client, target)
    line.proxy.blackhole(direction)
    client.says(b"question")
    target.says(b"message")
    if direction == "reads":
        assert await target.hears(b"question")
        assert await client.hears_nothing()
    elif direction == "writes":
        assert await client.hears(b"message")
        assert await target.hears_nothing()
    else:
        assert all(await asyncio.gather(client.hears_nothing(), target.hears_nothing()))
    assert await works(*await line.connect())
    assert line.proxy.connections == 2


@pytest.mark.parametrize("end", [Peer.close, Peer.reset])
async def test_a_blackholed_client_does_not_learn_that_its_server_died(
    line: Line, end: Callable[[Peer], None]
) -> None:
    client, target = await line.connect()
    line.proxy.blackhole()
    end(target)
    client.says(b"are you there?")
    assert await client.hears_nothing()
    client.says(b"hello?")
    assert await client.hears_nothing()


async def test_a_half_blackholed_client_is_missed_by_its_server(line: Line) -> None:
    client, target = await line.connect()
    line.proxy.blackhole("reads")
    client.close()
    assert await target.sees_the_end()
    client, target = await line.connect()
    line.proxy.blackhole("writes")
    client.close()
    assert await target.hears_nothing()


async def test_a_network_may_be_lost_for_new_connections_too(line: Line) -> None:
    line.proxy.blackhole(existing_only=False)
    client, target = await line.connect()
    client.says(b"ask")
    target.says(b"tell")
    assert all(await asyncio.gather(client.hears_nothing(), target.hears_nothing()))
    line.proxy.accept()
    assert await works(*await line.connect())
    assert await client.hears_nothing()


async def test_dropped_connections_are_reset_on_both_sides(line: Line) -> None:
    first, second = await line.connect(), await line.connect()
    assert line.proxy.connections == 2
    line.proxy.drop()
    for peer in (*first, *second):
        assert await peer.is_reset()
    assert line.proxy.connections == 0
    assert await works(*await line.connect())


async def test_a_refusing_proxy_keeps_what_it_has_and_takes_nothing_new(line: Line) -> None:
    client, target = await line.connect()
    port = line.proxy.port
    for _ in range(2):
        line.proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await line.connect()
        assert await works(client, target)
        line.proxy.accept()
        assert line.proxy.port == port
        assert await works(*await line.connect())


async def test_a_delay_holds_bytes_back_and_keeps_their_order(line: Line) -> None:
    client, target = await line.connect()
    line.proxy.delay_seconds = 2 * SILENCE_SECONDS
    client.says(b"one ")
    assert await target.hears_nothing()
    client.says(b"two ")
    client.says(b"three")
    assert await target.hears(b"one two three")


async def test_a_delayed_chunk_is_lost_in_a_hole_that_opens_meanwhile(line: Line) -> None:
    client, target = await line.connect()
    line.proxy.delay_seconds = 2 * SILENCE_SECONDS
    client.says(b"too late")
    assert await target.hears_nothing()
    line.proxy.blackhole()
    assert await target.hears_nothing()
    assert await target.hears_nothing()


async def test_a_client_of_a_dead_target_is_reset_and_the_proxy_goes_on(line: Line) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        async with FaultProxy(*unheard.getsockname()) as line.proxy:
            for _ in range(2):
                assert await (await line.call()).is_reset()


@pytest.mark.parametrize("turns", range(5))
async def test_a_closed_proxy_leaves_no_task_and_no_client_that_waits(
    line: Line, turns: int
) -> None:
    client = await line.call()
    for _ in range(turns):
        await asyncio.sleep(0)
    await line.proxy.aclose()
    assert "FaultProxy" not in str(asyncio.all_tasks())
    assert await client.is_reset()
    with pytest.raises(ConnectionRefusedError):
        await line.call()


async def test_tls_passes_through(redis_tls_server: CacheServer) -> None:
    async with FaultProxy("127.0.0.1", redis_tls_server.port) as proxy:
        url = BrokerURL.parse(redis_tls_server.url_at(proxy.port))
        trust = ssl.create_default_context(cafile=dict(url.extra)["tls_ca_file"])
        client = Peer(
            *await asyncio.open_connection(url.addresses[0].host, url.addresses[0].port, ssl=trust)
        )
        client.says(b"PING\r\n")
        assert await client.hears(b"+PONG\r\n")
        assert proxy.connections == 1
        client.writer.transport.abort()
