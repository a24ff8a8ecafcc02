"""Promised numbers: no loss after subscribe, no gap without a cause, recovery within 2 s."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence

import pytest

from django_sockets import Gap, Hub, Message, open_hub
from django_sockets.delivery.message import Delivery
from django_sockets.testing.contract.faults import flow, is_message, quick, traffic
from django_sockets.testing.ledger import Ledger, listening
from django_sockets.testing.servers import CacheServer

pytestmark = pytest.mark.load

ECHO = """
import asyncio, sys
from django_sockets import open_hub

async def main(url):
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    calls = set()
    async with open_hub(url) as hub:
        while line := await reader.readline():
            channel = line.decode().strip()
            call = asyncio.create_task(hub.publish(channel, channel.encode()))
            calls.add(call)
            call.add_done_callback(calls.discard)
        await asyncio.gather(*calls)

asyncio.run(main(sys.argv[1]))
"""

PUBLISHER = """
import asyncio, sys
from django_sockets import open_hub

url, name, rooms, rounds, ahead = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
ROOMS = [f"load:{i}" for i in range(rooms)]

async def main():
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with open_hub(url) as hub:
        for number in range(1, rounds + 1):
            if number > ahead:
                await reader.readline()
            payload = b"%d %d" % (int(name), number)
            await asyncio.gather(
                *(hub.publish(ROOMS[i : i + 10], payload) for i in range(0, rooms, 10))
            )

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def script(code: str, *arguments: object) -> AsyncIterator[Process]:
    """A Python process with a pipe to its standard input. It must succeed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *map(str, arguments), stdin=PIPE
    )
    try:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_nothing_that_another_process_publishes_after_subscribe_is_missed(
    valkey_server: CacheServer,
) -> None:
    received = 0
    prefix = uuid.uuid4().hex

    async with script(ECHO, valkey_server.url) as echo, open_hub(valkey_server.url) as hub:

        async def again_and_again(worker: int) -> None:
            nonlocal received
            for i in range(200):
                channel = f"{prefix}:{worker}:{i}"
                async with hub.subscribe(channel) as events:
                    echo.stdin.write(channel.encode() + b"\n")  # type: ignore[union-attr]
                    event = await asyncio.wait_for(anext(events), 10)
                    received += event == Message(channel=channel, payload=channel.encode())

        await asyncio.gather(*map(again_and_again, range(50)))
    assert received == 10_000


class Counter:
    """Counts a million messages at the least cost for each."""

    def __init__(self, publishers: int, rooms: int) -> None:
        self.rooms = rooms
        self.last = [{f"load:{i}": 0 for i in range(rooms)} for _ in range(publishers)]
        self.received = [0] * publishers
        self.wrong: list[object] = []
        self.round = asyncio.Event()

    def on_delivery(self, delivery: Delivery) -> None:
        publisher, number = map(int, delivery.payload.split())
        last = self.last[publisher]
        if number != last[delivery.channel] + 1:
            self.wrong.append((delivery.channel, delivery.payload))
        last[delivery.channel] = number
        self.received[publisher] += 1
        if not self.received[publisher] % self.rooms:
            self.round.set()

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        self.wrong.append(Gap(channels=tuple(channels), reason=reason))


@pytest.mark.timeout(120)
async def test_a_million_messages_without_a_fault_signal_no_gap(
    fresh_valkey_server: CacheServer,
) -> None:
    publishers, rooms, rounds, ahead = 4, 1000, 250, 10
    url = fresh_valkey_server.url
    counter = Counter(publishers, rooms)
    async with open_hub(url) as hub, contextlib.AsyncExitStack() as stack:
        await hub.add(counter, list(counter.last[0]))
        processes = [
            await stack.enter_async_context(script(PUBLISHER, url, i, rooms, rounds, ahead))
            for i in range(publishers)
        ]
        granted = [0] * publishers
        while sum(counter.received) < publishers * rooms * rounds and not counter.wrong:
            # A publisher stays a few rounds ahead of us: a reader that falls behind would be cut
            # off by the server, and a gap would be right.
            await asyncio.wait_for(counter.round.wait(), 30)
            counter.round.clear()
            for i, process in enumerate(processes):
                done = min(counter.received[i] // rooms, rounds - ahead)
                if granted[i] < done:
                    process.stdin.write(b"\n" * (done - granted[i]))  # type: ignore[union-attr]
                    granted[i] = done
        assert counter.wrong == []
        assert sum(counter.received) == 1_000_000
        stats = hub.stats()
        assert (stats["gaps"], stats["dropped_late"], stats["poison"]) == (0, 0, 0)


async def test_a_server_killed_under_load_is_back_in_two_seconds_and_what_it_lost_is_signalled(
    fresh_valkey_server: CacheServer,
) -> None:
    server, url = fresh_valkey_server, quick(fresh_valkey_server.url)
    rooms = [f"load:{i}" for i in range(50)]
    ledgers = [Ledger(name) for name in "abcd"]
    async with contextlib.AsyncExitStack() as stack:
        reader = await stack.enter_async_context(open_hub(url))
        heard = await stack.enter_async_context(listening(reader, *rooms))
        hubs: list[Hub] = [await stack.enter_async_context(open_hub(url)) for _ in ledgers]
        async with contextlib.AsyncExitStack() as load:
            for hub, ledger in zip(hubs, ledgers, strict=True):
                await load.enter_async_context(traffic(hub, ledger, *rooms))
            await heard.until(lambda _: len(heard.messages) > 5000)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(1)
            down = len(heard.events)
            await asyncio.to_thread(server.start)
            back = time.monotonic()
            gap = await heard.until_gap(start=down, within_seconds=2)
            await heard.until(is_message, start=gap, within_seconds=2 - (time.monotonic() - back))
            await heard.until(lambda _: len(heard.events) > gap + 5000)
        for hub, ledger in zip(hubs, ledgers, strict=True):
            await flow(hub, ledger, heard, *rooms)
        assert heard.check(*ledgers) != []
        assert sorted(heard.events[gap].channels) == sorted(rooms)
