"""Replies are parsed completely, in order and within bounds, for any chunks of bytes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from django_sockets.backends.client import parser
from django_sockets.backends.client.parser import ConnectionLost, Parser

if sys.platform == "win32":
    LOOPS = [asyncio.new_event_loop]
else:
    import uvloop

    LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]

PATIENCE_SECONDS = 10


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Parser, asyncio.StreamWriter, asyncio.StreamReader]]:
    """An parser that has not taken over yet, its stream's reader, and the server's writer."""
    served: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda _, writer: served.set_result(writer), "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    there = await served
    try:
        here = Parser()
        here.stream = writer  # type: ignore[attr-defined]
        yield here, there, reader
    finally:
        writer.transport.abort()
        there.transport.abort()
        server.close()


async def read(here: Parser, count: int) -> list[object]:
    replies: list[object] = []
    while len(replies) < count:
        replies += await asyncio.wait_for(here.read(), PATIENCE_SECONDS)
    return replies


async def in_pieces() -> None:
    """Before it took over, in the middle of a reply, and one byte at a time."""
    async with connected() as (here, there, reader):
        there.write(b":1\r\n$5\r\nhe")
        while not reader._buffer:  # type: ignore[attr-defined]  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)
        here.take_over(reader, here.stream)  # type: ignore[attr-defined]
        assert await read(here, 1) == [1]
        for byte in b"llo\r\n:2\r\n":
            there.write(bytes([byte]))
            await there.drain()
            await asyncio.sleep(0)
        assert await read(here, 2) == [b"hello", 2]
        assert here.received_bytes == len(b":1\r\n$5\r\nhello\r\n:2\r\n")
        assert here.partial_bytes == 0


async def larger_than_its_buffer() -> None:
    """A payload of many buffers shows as partial while it arrives, and comes out whole."""
    async with connected() as (here, there, reader):
        here.take_over(reader, here.stream)  # type: ignore[attr-defined]
        payload = bytes(range(256)) * 8192
        there.write(b"$%d\r\n" % len(payload) + payload[:-1])
        reading = asyncio.create_task(read(here, 1))
        while here.partial_bytes < len(payload):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
        there.write(payload[-1:] + b"\r\n")
        assert await reading == [payload]
        assert here.partial_bytes == 0


async def read_too_slowly() -> None:
    """A task that does not read stops the network, so that the server notices; nothing is lost."""
    count = 1_000_000
    async with connected() as (here, there, reader):
        here.take_over(reader, here.stream)  # type: ignore[attr-defined]
        there.write(b"".join(b":%d\r\n" % number for number in range(count)))
        before = -1
        while here.received_bytes != before:  # Until nothing more comes.
            before = here.received_bytes
            await asyncio.sleep(0.1)
        assert here.received_bytes <= parser.UNREAD_BYTES + parser.BUFFER_BYTES
        assert await read(here, count) == list(range(count))


async def closed_by_the_server() -> None:
    """Replies before the end are still delivered."""
    async with connected() as (here, there, reader):
        here.take_over(reader, here.stream)  # type: ignore[attr-defined]
        there.write(b":1\r\n:2\r\n")
        there.close()
        assert await read(here, 2) == [1, 2]
        with pytest.raises(ConnectionLost, match="closed by the server"):
            await asyncio.wait_for(here.read(), PATIENCE_SECONDS)


async def closed_before_it_took_over() -> None:
    async with connected() as (here, there, reader):
        there.write(b":1\r\n")
        there.close()
        while not reader.at_eof() and not reader._eof:  # type: ignore[attr-defined]  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        here.take_over(reader, here.stream)  # type: ignore[attr-defined]
        assert await read(here, 1) == [1]
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(here.read(), PATIENCE_SECONDS)


async def no_reply_of_a_server() -> None:
    async with connected() as (here, there, reader):
        here.take_over(reader, here.stream)  # type: ignore[attr-defined]
        there.write(b":1\r\nHTTP/1.1 400 Bad Request\r\n")
        with pytest.raises(ConnectionLost, match="not a reply"):
            await read(here, 2)


@pytest.mark.parametrize("new_loop", LOOPS, ids=lambda loop: loop.__module__.partition(".")[0])
@pytest.mark.parametrize(
    "story",
    [
        in_pieces,
        larger_than_its_buffer,
        read_too_slowly,
        closed_by_the_server,
        closed_before_it_took_over,
        no_reply_of_a_server,
    ],
    ids=lambda story: story.__name__,
)
def test_intake(
    story: Callable[[], Awaitable[None]], new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    loop = new_loop()
    try:
        loop.run_until_complete(story())
    finally:
        loop.close()
