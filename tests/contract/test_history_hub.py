"""Hubs with a history on real servers: failovers that lose writes, storms, and many subscribers."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from django_sockets import Hub, Message, open_hub
from django_sockets.deadlines import with_deadline
from django_sockets.delivery.events import EventQueue, Gap
from django_sockets.delivery.message import Delivery
from django_sockets.history import Position
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.ledger import listening
from django_sockets.testing.proxy import FaultProxy
from django_sockets.testing.servers import CacheServer

ROOM = "kept:1"


def kept(url: str, messages: int = 1000, seconds: float = 60, **options: object) -> str:
    return quick(url, history_messages=messages, history_seconds=seconds, **options)


async def until(condition: Callable[[], bool], within_seconds: float = 10) -> None:
    async def look() -> None:
        while not condition():  # noqa: ASYNC110 - a server or a counter, without an event
            await asyncio.sleep(0.01)

    await with_deadline(within_seconds, look())


# Failovers that lose acknowledged writes


async def test_nobody_is_told_recovered_after_acknowledged_writes_are_gone(
    fresh_valkey_server: CacheServer, fresh_redis_server: CacheServer
) -> None:
    primary, replica = fresh_redis_server, fresh_valkey_server
    primary.execute("CONFIG", "SET", "repl-diskless-sync-delay", "0")
    replica.execute("REPLICAOF", "127.0.0.1", primary.port)
    await until(lambda: replica.execute("ROLE")[3] == "connected")
    async with open_hub(kept(primary.url)) as before, before.subscribe(ROOM) as events:
        positions = [str(events.recoveries[ROOM].position)]
        for number in range(5):
            await before.publish(ROOM, b"both %d" % number)
        primary.execute("WAIT", 1, 5000)
        replica.execute("REPLICAOF", "NO", "ONE")
        for number in range(100):
            await before.publish(ROOM, b"gone %d" % number)  # Acknowledged.
        for _ in range(105):
            event = await with_deadline(5, anext(events))
            assert isinstance(event, Message)
            positions.append(str(event.position))
    async with open_hub(kept(replica.url)) as after, after.subscribe(ROOM) as events:
        for number in range(150):
            await after.publish(ROOM, b"new %d" % number)
        newest = [await with_deadline(5, anext(events)) for _ in range(150)][-1]
        assert isinstance(newest, Message)
        # The same epoch and the same offsets.
        old, new = Position.parse(positions[-1]), Position.parse(newest.position)
        assert (old.epoch, old.offset < new.offset) == (new.epoch, True)
        for position in positions:
            queue = after.new_queue()
            result = (await after.add(queue, ROOM, since=position))[ROOM]
            assert (result.recovered, result.count) == (False, 0)
            assert isinstance(queue.drain()[0], Gap)
            await after.remove(queue)
        # A position of the present history is.
        resumed = await after.add(after.new_queue(), ROOM, since=newest.position)
        assert resumed[ROOM].recovered


# Holes on a link


@contextlib.asynccontextmanager
async def cutting(port: int, marks: Sequence[bytes]) -> AsyncIterator[int]:
    """A proxy that removes exactly the pushes with these payloads; yields its port."""
    left = list(marks)
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                for mark in list(left) if cut else ():
                    found = re.search(
                        rb">3\r\n\$7\r\nmessage\r\n\$\d+\r\n[^\r]+\r\n\$\d+\r\n"
                        rb"(?:(?!>3\r\n)[\s\S])*?" + re.escape(mark) + rb"\r\n",
                        chunk,
                    )
                    if found is not None:
                        chunk = chunk[: found.start()] + chunk[found.end() :]
                        left.remove(mark)
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, to_server[1]))
        for pair in ((reader, to_server[1], False), (to_server[0], writer, True)):
            tasks.add(asyncio.get_running_loop().create_task(pump(*pair)))

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
        assert not left, "nothing was cut"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for writer in writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def test_the_first_message_of_a_publisher_that_is_cut_out_is_healed(
    valkey_server: CacheServer,
) -> None:
    room = f"{ROOM}:{time.monotonic_ns()}"
    async with (
        cutting(valkey_server.port, [b"the first", b"the fourth"]) as port,
        open_hub(kept(valkey_server.url_at(port))) as reader,
        open_hub(kept(valkey_server.url)) as publisher,
        listening(reader, room) as heard,
    ):
        sent = [b"the first", b"the second", b"the third", b"the fourth", b"the fifth"]
        for payload in sent:
            await publisher.publish(room, payload)
        await heard.until_payload(sent[-1])
        assert heard.events == [Message(channel=room, payload=payload) for payload in sent]


async def test_a_last_message_that_is_cut_out_is_found_when_the_channel_is_quiet(
    valkey_server: CacheServer,
) -> None:
    room = f"{ROOM}:{time.monotonic_ns()}"
    async with (
        cutting(valkey_server.port, [b"the last"]) as port,
        open_hub(kept(valkey_server.url_at(port), seconds=1.5)) as reader,
        open_hub(kept(valkey_server.url, seconds=1.5)) as publisher,
        listening(reader, room) as heard,
    ):
        await publisher.publish(room, b"one")
        await publisher.publish(room, b"the last")
        await heard.until_payload(b"the last")
        assert [event.payload for event in heard.messages] == [b"one", b"the last"]
        assert heard.gaps == []


# Many subscribers


@pytest.mark.load
async def test_a_thousand_readers_resume_during_a_storm_of_publishes(
    fresh_valkey_server: CacheServer,
) -> None:
    """Each one reads the state first, and then subscribes from the position of the state."""
    server, source = fresh_valkey_server, random.Random(1)
    url = kept(server.url, messages=10_000, events_queue_size=1 << 17)
    async with (
        open_hub(url) as reader,
        open_hub(url) as publisher,
        reader.subscribe(ROOM) as state,
    ):
        storming, newest = True, (-1, str(state.recoveries[ROOM].position))

        async def storm() -> int:
            number = 0
            while storming:
                await asyncio.gather(
                    *(publisher.publish(ROOM, b"%d" % n) for n in range(number, number + 4))
                )
                number += 4
            return number

        async def follow() -> None:
            nonlocal newest
            async for event in state:
                assert isinstance(event, Message), event
                newest = int(event.payload), str(event.position)

        async def resume() -> tuple[int, EventQueue]:
            await asyncio.sleep(source.random())
            seen, position = newest
            await asyncio.sleep(source.random())
            queue = reader.new_queue()
            recovery = (await reader.add(queue, ROOM, since=position))[ROOM]
            assert recovery.recovered
            return seen, queue

        storm_task = asyncio.create_task(storm())
        follower = asyncio.create_task(follow())
        readers = await asyncio.gather(*(resume() for _ in range(1000)))
        storming = False
        published = await storm_task
        await until(lambda: newest[0] == published - 1)
        follower.cancel()
        for seen, queue in readers:
            events = queue.drain()
            numbers = [int(e.payload) for e in events if isinstance(e, Delivery)]
            assert numbers == list(range(seen + 1, published))
        assert published > 100


class Counting:
    """A subscriber that counts."""

    __slots__ = ("gaps", "messages")

    def __init__(self) -> None:
        self.messages = self.gaps = 0

    def on_delivery(self, _: Delivery) -> None:
        self.messages += 1

    def on_gap(self, *_: object) -> None:
        self.gaps += 1


def calls_of(server: CacheServer, command: str) -> int:
    found = re.search(rf"cmdstat_{command}:calls=(\d+)", server.execute("INFO", "commandstats"))
    return 0 if found is None else int(found[1])


@pytest.mark.load
async def test_10000_subscribers_of_100_channels_are_whole_after_one_read_of_each_channel(
    fresh_valkey_server: CacheServer,
) -> None:
    server = fresh_valkey_server
    channels = [f"kept:{number}" for number in range(100)]
    subscribers = [Counting() for _ in range(10_000)]
    async with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        open_hub(kept(server.url_at(proxy.port))) as reader,
        open_hub(kept(server.url)) as publisher,
    ):
        for number, subscriber in enumerate(subscribers):
            await reader.add(subscriber, channels[number % 100])
        for _ in range(5):
            await publish_to_all(publisher, channels)
        await until(lambda: all(one.messages == 5 for one in subscribers))
        proxy.refuse()
        proxy.drop()
        for _ in range(10):
            await publish_to_all(publisher, channels)
        before, bytes_before, used = calls_of(server, "evalsha"), output(server), cpu(server)
        began = time.monotonic()
        proxy.accept()
        await until(lambda: all(one.messages == 15 for one in subscribers), within_seconds=5)
        seconds = time.monotonic() - began
        # The connections retry after pauses of at most a second.
        assert seconds < 3
        assert calls_of(server, "evalsha") - before == len(channels)
        assert not any(one.gaps for one in subscribers)
        print(
            f"{seconds:.2f} s, {output(server) - bytes_before} bytes, "
            f"{cpu(server) - used:.3f} s of server CPU"
        )


async def publish_to_all(hub: Hub, channels: Sequence[str]) -> None:
    await hub.publish(channels, b"x" * 100)


def output(server: CacheServer) -> int:
    found = re.search(r"total_net_output_bytes:(\d+)", server.execute("INFO", "stats"))
    assert found is not None
    return int(found[1])


def cpu(server: CacheServer) -> float:
    text = server.execute("INFO", "cpu")
    return sum(float(value) for value in re.findall(r"used_cpu_(?:sys|user):([\d.]+)", text))
