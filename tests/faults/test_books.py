"""The books of two processes balance under load and faults, as Prometheus sees them.

An operator can tell from the metrics what happened to every message: its publish succeeded or
failed, and each delivery was sent, dropped or discarded. Clients are told of each gap in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

import websockets

from django_sockets.deadlines import with_deadline
from django_sockets.delivery.events import OVERFLOW
from django_sockets.hub.stats import GAP_COUNTERS, LOST_LINK
from django_sockets.testing.servers import CacheServer
from support.faults.processes import ServerProcess, serve
from support.metrics import Metrics, scraped

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(sys.platform != "linux", reason="relies on the socket buffers of Linux"),
]

ROOT = Path(__file__).resolve().parents[2]
HEALTHY, CLOSING, DROPPING = 6, 2, 2
"""Clients of each process: those that always read, and those that stop to read, by their policy."""
PAYLOAD_BYTES = 64 * 1024
GIVE_UP_SECONDS = 90

SOURCE = """
import asyncio, os
from django_sockets.errors import PublishError
from django_sockets.observability import collect_metrics, metrics_text
from django_sockets.sockets import BaseSocketServer

collect_metrics()

class Closing(BaseSocketServer):
    config = os.environ["BROKER"]
    outbox_bytes = 256 * 1024

    async def connect(self):
        await self.async_subscribe("everybody")
        await self.async_send("joined")

    async def gap(self, channels, reason):
        await self.async_send({"gap": reason})

class Healthy(Closing):
    outbox_bytes = 1024 * 1024 * 1024  # It must not count as slow on a busy machine.

class Dropping(Closing):
    overflow = "drop_oldest"

def message(data):
    return {"number": data["number"], "pad": "." * data["bytes"]}

class Publisher(BaseSocketServer):
    config = os.environ["BROKER"]

    async def receive(self, data):
        try:
            await self.async_broadcast("everybody", message(data))
        except PublishError:
            await self.async_send("failed")
        else:
            await self.async_send("published")

class PlainPublisher(Publisher):
    def receive(self, data):
        try:
            self.broadcast("everybody", message(data))
        except PublishError:
            self.send("failed")
        else:
            self.send("published")

KINDS = {
    "/": Healthy,
    "/closing": Closing,
    "/dropping": Dropping,
    "/publish": Publisher,
    "/plain": PlainPublisher,
}

async def application(scope, receive, send):
    if scope["type"] != "http":
        await KINDS[scope.get("path", "/")].as_asgi(scope, receive, send)
        return
    text, content_type = await asyncio.to_thread(metrics_text)
    headers = [(b"content-type", content_type.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})
"""


class Client:
    """A client, and what it got: the numbers of messages, gaps by reason, and the close code."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.numbers: list[int] = []
        self.gaps: Counter[str] = Counter()
        self.code: int | None = None
        self._changed = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    def read(self) -> None:
        self._reading = asyncio.ensure_future(self._read())

    async def stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def _read(self) -> None:
        try:
            async for frame in self.connection:
                data = json.loads(frame)
                if "gap" in data:
                    self.gaps[data["gap"] if data["gap"] in GAP_COUNTERS else LOST_LINK] += 1
                elif "number" in data:
                    self.numbers.append(data["number"])
                self._changed.set()
        except websockets.ConnectionClosed:
            pass
        self.code = self.connection.close_code
        self._changed.set()

    async def until(self, number: int) -> None:
        """Wait for a message, or for the end of the connection."""

        async def wait() -> None:
            while self.code is None and number not in self.numbers[-50:]:
                self._changed.clear()
                await self._changed.wait()

        await with_deadline(GIVE_UP_SECONDS, wait())


def small(port: int) -> socket.socket:
    """A connection of a client whose own buffer is soon full."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    connection.connect(("127.0.0.1", port))
    connection.setblocking(False)
    return connection


class Site:
    """One process with its clients."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.healthy: list[Client] = []
        self.closing: list[Client] = []
        self.dropping: list[Client] = []
        self.opened = 0
        self.outcomes: Counter[str] = Counter()

    @property
    def clients(self) -> list[Client]:
        return [*self.healthy, *self.closing, *self.dropping]

    async def open(self, path: str, **options: Any) -> Any:
        self.opened += 1
        return await self.server.connect(path, max_queue=4, ping_interval=None, **options)

    async def start(self, publisher: str) -> None:
        self.publisher = await self.open(publisher)
        kinds = [(self.healthy, HEALTHY, "/"), (self.closing, CLOSING, "/closing")]
        for clients, count, path in [*kinds, (self.dropping, DROPPING, "/dropping")]:
            for _ in range(count):
                options = {} if clients is self.healthy else {"sock": small(self.server.port)}
                client = Client(await self.open(path, **options))
                assert await client.connection.recv() == '"joined"'
                client.read()
                clients.append(client)

    async def publish(self, number: int, size_bytes: int = 10) -> bool:
        await self.publisher.send(json.dumps({"number": number, "bytes": size_bytes}))
        outcome = json.loads(await self.publisher.recv())
        self.outcomes[outcome] += 1
        return bool(outcome == "published")

    async def scrape(self) -> Metrics:
        def read() -> str:
            address = f"http://127.0.0.1:{self.server.port}/metrics"
            with urllib.request.urlopen(address, timeout=30) as answer:
                text: str = answer.read().decode()
                return text

        return scraped(await asyncio.to_thread(read))

    async def until(self, condition: Any) -> Metrics:
        """Scrape until a condition is true."""
        give_up = time.monotonic() + GIVE_UP_SECONDS
        while not condition(metrics := await self.scrape()):
            assert time.monotonic() < give_up, [one for one in metrics.series if one[2]]
            await asyncio.sleep(0.1)
        return metrics


def check(site: Site, metrics: Metrics) -> None:
    """Compare the metrics of one process with what its clients and its publisher saw."""
    assert metrics("messages_published_total") == sum(site.outcomes.values())
    assert metrics("publish_errors_total") == site.outcomes["failed"]
    assert metrics("publish_seconds_count", outcome="ok") == site.outcomes["published"]
    got = sum(len(client.numbers) for client in site.clients)
    dropped = metrics("messages_dropped_total")
    discarded = metrics("messages_discarded_total")
    unread = metrics("messages_delivered_total") - (got + dropped + discarded)
    # A client that does not read for a second more is cut off, with what the server has for it.
    cut_off = any(client.code == 1006 for client in site.closing)
    assert unread >= 0 if cut_off else unread == 0
    told = sum((client.gaps for client in site.clients), Counter[str]())
    assert {reason: metrics("gaps_total", reason=reason) for reason in told} == told
    assert metrics("gaps_total") == sum(told.values())
    assert told[LOST_LINK] >= HEALTHY + CLOSING + DROPPING
    assert told[OVERFLOW] >= DROPPING
    assert [client.code in (1013, 1006) for client in site.closing] == [True] * CLOSING
    assert [client.code for client in [*site.healthy, *site.dropping]] == [None] * (
        HEALTHY + DROPPING
    )
    assert metrics("limit_closes_total", limit="overflow") == CLOSING
    assert metrics("connections_closed_total", code="1013") == CLOSING
    accepted = metrics("handshakes_total", outcome="accepted")
    assert accepted == site.opened
    assert accepted - metrics("connections_closed_total") == metrics("open_sockets")
    assert metrics("links_lost_total", link="subscribing") >= 1
    assert metrics("link_restore_seconds_count", link="subscribing") >= 1
    for client in site.healthy:  # Nothing is repeated, and nothing is missing without a gap.
        assert len(set(client.numbers)) == len(client.numbers)


async def test_the_books_of_two_processes_balance(
    fresh_valkey_server: CacheServer, tmp_path: Path
) -> None:
    server = fresh_valkey_server
    broker = f"{server.url}?publish_timeout_seconds=3"
    numbers = iter(range(1_000_000))
    async with contextlib.AsyncExitStack() as stack:
        sites = []
        for index, publisher in enumerate(["/publish", "/plain"]):
            folder = tmp_path / str(index)
            folder.mkdir()
            options = ("--ws-ping-interval", "600")  # A client that does not read answers no ping.
            process = await stack.enter_async_context(
                serve(
                    *("uvicorn-frames", SOURCE, folder, *options),
                    BROKER=broker,
                    PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]),
                )
            )
            sites.append(Site(process))
            await sites[-1].start(publisher)

        async def everybody_has(number: int) -> None:
            clients = [client for site in sites for client in site.clients]
            await asyncio.gather(*(client.until(number) for client in clients))

        async def publish(count: int, size_bytes: int = 10) -> int:
            """Publish in each process; returns the last number that was published for certain."""
            last = -1
            for _ in range(count):
                for site in sites:
                    number = next(numbers)
                    if await site.publish(number, size_bytes):
                        last = number
            return last

        # Everybody reads.
        await everybody_has(await publish(50))

        # The subscribing connections are lost, and then publishes get no answer.
        await asyncio.to_thread(server.execute, "CLIENT", "KILL", "TYPE", "pubsub")
        await publish(20)
        for site in sites:
            await site.until(lambda metrics: metrics("link_restore_seconds_count") >= 1)
        await asyncio.to_thread(server.execute, "CLIENT", "PAUSE", "60000", "WRITE")
        await asyncio.gather(*(site.publish(next(numbers)) for site in sites))
        await asyncio.to_thread(server.execute, "CLIENT", "UNPAUSE")
        assert all(site.outcomes["failed"] for site in sites)
        await everybody_has(await publish(5))

        # Some clients stop to read.
        for site in sites:
            for client in [*site.closing, *site.dropping]:
                await client.stop_reading()

        def all_found(metrics: Metrics) -> bool:
            found = metrics("limit_closes_total", limit="overflow")
            return found == CLOSING and metrics("gaps_total", reason="overflow") >= DROPPING

        give_up = time.monotonic() + GIVE_UP_SECONDS
        while not all([all_found(await site.scrape()) for site in sites]):
            assert time.monotonic() < give_up, "the slow clients were not found"
            await publish(20, PAYLOAD_BYTES)
        for site in sites:
            for client in [*site.closing, *site.dropping]:
                client.read()
        await everybody_has(await publish(1))
        for site in sites:
            metrics = await site.until(
                lambda metrics, site=site: (
                    metrics("connections_closed_total") == CLOSING
                    and metrics("queued_messages") == metrics("slow_clients") == 0
                )
            )
            check(site, metrics)
            assert metrics("messages_dropped_total") > 0
            assert metrics("messages_discarded_total") > 0
            assert metrics("slow_consumers_total") >= CLOSING + DROPPING
            assert metrics("slow_consumer_queue_bytes_count") == metrics("slow_consumers_total")

        # Each process has received what both have published, apart from what was lost.
        total = sum(sum(site.outcomes.values()) for site in sites)
        for site in sites:
            for client in site.healthy:
                assert len(client.numbers) <= total
                assert client.gaps[LOST_LINK]

        # Everybody leaves.
        for site in sites:
            await site.publisher.close()
            for client in site.clients:
                await client.connection.close()
            metrics = await site.until(lambda metrics: metrics("open_sockets") == 0)
            assert metrics("connections_closed_total") == metrics("handshakes_total") == site.opened
            assert metrics("connections_closed_total", code="1000") == site.opened - CLOSING
            assert metrics("subscribers") == 0
