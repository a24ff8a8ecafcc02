"""Clients that stop reading do not delay others, use bounded memory, and are counted."""

from __future__ import annotations

import asyncio
import bisect
import json
import os
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import websockets

from django_sockets import open_hub
from support.faults.processes import ServerProcess, serve

SECONDS = float(os.environ.get("DJANGO_SOCKETS_SLOW_SECONDS", "2"))
"""How long the load lasts with stuck clients; 60 for the full test (`make slow`)."""
POLICIES = ["close", "drop_oldest", "drop_newest"] if SECONDS >= 30 else ["drop_oldest"]
"""All of them in the full test; tests/sockets/test_overflow.py has them without a server."""
CLIENTS, STUCK = 200, 20
PAYLOAD_BYTES = 64 * 1024
MEMORY_BYTES = 150 * 1024 * 1024
"""What a process may grow by: 20 stuck clients with an outbox of 1 MiB each, as much again in the
server's buffers, and the garbage of 64 KiB messages between two collections."""

SOURCE = """
import os
from django_sockets import local_hubs
from django_sockets.sockets import BaseSocketServer

class Member(BaseSocketServer):
    config = os.environ["BROKER"]
    overflow = os.environ["POLICY"]

    async def connect(self):
        await self.async_subscribe("everybody")
        await self.async_send("joined")

class Stats(BaseSocketServer):
    config = os.environ["BROKER"]

    async def receive(self, data):
        hub = local_hubs()[0]
        await self.async_send(hub.stats())

async def application(scope, receive, send):
    kind = Stats if scope.get("path") == "/stats" else Member
    await kind.as_asgi(scope, receive, send)
"""

pytestmark = [
    pytest.mark.load,
    pytest.mark.timeout(120 + 3 * SECONDS),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


class Reader:
    """A client and what it got: the numbers, and how long each took."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.numbers: list[int] = []
        self.seconds: list[float] = []

    async def read(self) -> None:
        try:
            async for frame in self.connection:
                number, at, _ = frame.split(b" ", 2)
                self.numbers.append(int(number))
                self.seconds.append(time.monotonic() - float(at))
        except websockets.ConnectionClosedError:
            pass

    async def until(self, number: int) -> None:
        give_up = time.monotonic() + 20
        while not self.numbers or self.numbers[-1] < number:
            assert time.monotonic() < give_up, f"got {self.numbers[-1:]} and not {number}"
            await asyncio.sleep(0.02)

    def since(self, number: int) -> list[float]:
        """How long each message from this number on took."""
        return self.seconds[bisect.bisect_left(self.numbers, number) :]


def p99(readers: list[Reader], since: int) -> float:
    """Over all deliveries from a message on."""
    seconds = [second for reader in readers for second in reader.since(since)]
    return statistics.quantiles(seconds, n=100)[98]


class Publisher:
    def __init__(self, hub: Any) -> None:
        self.hub = hub
        self.number = -1

    async def publish(self) -> None:
        self.number += 1
        head = b"%d %.6f " % (self.number, time.monotonic())
        await self.hub.publish("everybody", head.ljust(PAYLOAD_BYTES, b"."))

    async def at_rate(self, per_second: float, seconds: float) -> int:
        """Publish at a fixed rate; returns the first number."""
        began, first = time.monotonic(), self.number + 1
        for count in range(max(1, round(per_second * seconds))):
            await asyncio.sleep(max(0.0, began + count / per_second - time.monotonic()))
            await self.publish()
        return first


async def throughput(publisher: Publisher, readers: list[Reader]) -> float:
    """Messages per second to all clients, each published after the one before has arrived."""
    began, count = time.monotonic(), 10
    for _ in range(count):
        await publisher.publish()
    await asyncio.gather(*(reader.until(publisher.number) for reader in readers))
    return count / (time.monotonic() - began)


def small(port: int) -> socket.socket:
    """A connection of a client whose own buffer is soon full."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PAYLOAD_BYTES)
    connection.connect(("127.0.0.1", port))
    connection.setblocking(False)
    return connection


async def watch_memory(server: ServerProcess, peaks: list[int]) -> None:
    while True:
        peaks.append(server.memory_bytes)
        await asyncio.sleep(0.1)


async def stats(server: ServerProcess) -> dict[str, int]:
    async with await server.connect("/stats") as connection:
        await connection.send("1")
        answer: dict[str, int] = json.loads(await connection.recv())
        return answer


@pytest.mark.parametrize(
    ("policy", "server_name"),
    [*((policy, "uvicorn-frames") for policy in POLICIES), (POLICIES[-1], "uvicorn")],
)
async def test_the_others_get_everything_in_time_and_the_stuck_ones_are_accounted_for(
    policy: str, server_name: str, fresh_valkey_server: Any, tmp_path: Path
) -> None:
    broker = fresh_valkey_server.url
    async with (
        # A stuck client answers no ping: without this the server would end it in 40 s.
        serve(
            server_name,
            SOURCE,
            tmp_path,
            *("--ws-ping-interval", "600"),
            BROKER=broker,
            POLICY=policy,
        ) as server,
        open_hub(broker) as hub,
    ):
        async with await server.connect() as first_of_all:
            await first_of_all.recv()  # A client that leaves before that discards a message, too.
        readers = []
        for number in range(CLIENTS):
            options = {"sock": small(server.port)} if number < STUCK else {}
            # It would also not wait longer for a pong that it does not read.
            connection = await server.connect(max_queue=4, ping_interval=None, **options)
            readers.append(Reader(connection))
            assert await readers[-1].connection.recv() == '"joined"'
        stuck, healthy = readers[:STUCK], readers[STUCK:]
        reading = [asyncio.ensure_future(reader.read()) for reader in healthy]
        publisher = Publisher(hub)

        first_reading = [asyncio.ensure_future(reader.read()) for reader in stuck]
        rate = await throughput(publisher, readers) / 2
        first = await publisher.at_rate(rate, min(SECONDS, 30))
        await asyncio.gather(*(reader.until(publisher.number) for reader in readers))
        before = p99(healthy, first)
        memory_before = server.memory_bytes

        for task in first_reading:  # From now on these do not read.
            task.cancel()
        await asyncio.wait(first_reading)
        began = publisher.number + 1
        peaks = [memory_before]
        watching = asyncio.ensure_future(watch_memory(server, peaks))
        # No client is slow until the buffers in between are full. Detecting them costs 0.2 s, once.
        found_out = "closed_overflow" if policy == "close" else "gaps"
        give_up = time.monotonic() + 40
        while (await stats(server))[found_out] < STUCK:
            assert time.monotonic() < give_up, await stats(server)
            await publisher.at_rate(rate, 1)
        settled = await publisher.at_rate(rate, SECONDS)
        await asyncio.gather(*(reader.until(publisher.number) for reader in healthy))
        watching.cancel()
        grown = max(peaks) - memory_before

        for reader in healthy:
            assert reader.numbers == list(range(publisher.number + 1))
        after = p99(healthy, settled)
        print(
            f"{policy}: {rate:.1f}/s, p99 {before * 1000:.0f} ms without and "
            f"{after * 1000:.0f} ms with stuck clients, memory grew by {grown / 2**20:.0f} MiB"
        )
        # In a few seconds, a single pause of the machine is the p99.
        assert after < max(2 * before, 0.05) or SECONDS < 30
        assert grown < MEMORY_BYTES

        # Now they read what is there for them.
        late = [asyncio.ensure_future(reader.read()) for reader in stuck]
        if policy == "close":
            await asyncio.wait_for(asyncio.gather(*late), 20)
        else:
            # What comes before a client has caught up may be dropped, too.
            give_up = time.monotonic() + 20
            while any(reader.numbers[-1:] != [publisher.number] for reader in stuck):
                assert time.monotonic() < give_up, "they did not catch up"
                await publisher.publish()
                await asyncio.sleep(0.5)
            await asyncio.gather(*(reader.until(publisher.number) for reader in healthy))
        counted = await stats(server)
        got = sum(len(reader.numbers) for reader in stuck)
        offered = counted["delivered"] - (publisher.number + 1) * len(healthy)
        print(f"{policy}: {got} read of {offered} offered, {counted}")
        assert counted["dropped_overflow"] + counted["discarded"] + got == offered
        if policy == "close":
            assert counted["closed_overflow"] == STUCK
            assert counted["dropped_overflow"] == 0
        else:
            assert counted["closed_overflow"] == counted["discarded"] == 0
            assert counted["dropped_overflow"] > 0
            assert offered == (publisher.number + 1) * STUCK
            assert counted["gaps"] >= STUCK
        for reader in stuck:
            assert reader.numbers == sorted(set(reader.numbers))
            assert reader.numbers[:began] == list(range(began))
        for reader in readers:
            await reader.connection.close()
        await asyncio.gather(*reading, *late)
        assert server.printed.count("WARNING:django_sockets") < 10
        assert "Traceback" not in server.printed, server.printed[-2000:]
