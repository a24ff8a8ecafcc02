"""All faults at once for a long time: cluster faults, clients that leave or stop reading, load.

`make soak` runs it for ten minutes. A failing run prints DJANGO_SOCKETS_NEMESIS_SEED=..., which
repeats its faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets

from django_sockets import PublishError, open_hub
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.contract.faults import quick
from support.faults.cluster_faults import behind_proxy
from support.faults.harness import under_load
from support.faults.nemesis import Nemesis
from support.faults.processes import ServerProcess, serve

SECONDS = float(os.environ.get("DJANGO_SOCKETS_SOAK_SECONDS") or 30)
SEED = int(os.environ.get("DJANGO_SOCKETS_NEMESIS_SEED") or random.randrange(1 << 32))
STUCK_SECONDS = 10.0
STEADY, SLOW = 10, 5
SPARE_BYTES = 24 * 1024 * 1024
"""What the process may grow by from a third of the time to the end."""

SOURCE = """
import os
from django_sockets.sockets import BaseSocketServer

class Member(BaseSocketServer):
    config = os.environ["BROKER"]
    overflow = "drop_oldest"
    outbox_messages = 64

    async def connect(self):
        await self.async_subscribe(["ticks", "load:1"])
        await self.async_send("joined")

    async def gap(self, channels, reason):
        if "ticks" in channels:
            await self.async_send({"gap": reason})

application = Member.as_asgi
"""

pytestmark = [pytest.mark.load, pytest.mark.timeout(SECONDS * 1.5 + 90)]


@pytest.fixture
def cluster(valkey_cluster: CacheCluster) -> Iterator[CacheCluster]:
    yield valkey_cluster
    valkey_cluster.restore()


class Steady:
    """A client that reads, and checks that each missing message is covered by a gap."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.last: int | None = None
        self.gap = -math.inf  # When it came, if it came since the last tick.
        self.gaps = 0

    async def read(self) -> None:
        async for frame in self.connection:
            text = frame if isinstance(frame, str) else frame.decode()
            if text.startswith('{"gap"'):
                self.gap = time.monotonic()
                self.gaps += 1
            elif text.startswith("tick "):
                number = int(text.split(" ", 2)[1])
                if self.last is not None:
                    assert number > self.last, f"{number} after {self.last}"
                    # Ticks whose publish failed may be missing without one.
                    missing = range(self.last + 1, number)
                    lost = [n for n in missing if published.get(n, -math.inf) > self.gap]
                    assert not lost, f"{lost} lost without a gap since, before {number}"
                self.last, self.gap = number, -math.inf


published: dict[int, float] = {}
"""Ticks whose publish succeeded -> when it began."""


async def tick(url: str, over: asyncio.Event) -> None:
    async with open_hub(url) as hub:
        number = 0
        while not over.is_set():
            number += 1
            began = time.monotonic()
            try:
                await hub.publish("ticks", b"tick %d " % number + b"." * 4000)
            except PublishError:
                pass
            else:
                published[number] = began
            await asyncio.sleep(0.02)


async def come_and_go(server: ServerProcess, over: asyncio.Event) -> int:
    """Clients that stay for a moment; returns how many."""
    count = 0
    while not over.is_set():
        with contextlib.suppress(websockets.ConnectionClosed, OSError, TimeoutError):
            client = await server.connect()
            count += 1
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(client.recv(), random.uniform(0.01, 0.3))
            if count % 2:
                await client.close()
            else:
                client.transport.abort()
    return count


async def test_all_of_it_for_a_while(cluster: CacheCluster, tmp_path: Path) -> None:
    print(f"DJANGO_SOCKETS_NEMESIS_SEED={SEED}", flush=True)
    published.clear()
    story: list[str] = []
    over = asyncio.Event()
    url = quick(cluster.url)
    try:
        async with (
            serve(
                "uvicorn-frames", SOURCE, tmp_path, *("--ws-ping-interval", "3600"), BROKER=url
            ) as server,
            behind_proxy(cluster, node := cluster.nodes[0]) as proxy,
            under_load(url) as load,
        ):
            load.may_replay = True
            steady = []
            for _ in range(STEADY):
                steady.append(Steady(await server.connect()))
                assert json.loads(await steady[-1].connection.recv()) == "joined"
            slow = [await server.connect(max_queue=1) for _ in range(SLOW)]
            reading = [asyncio.ensure_future(client.read()) for client in steady]
            ticking = asyncio.ensure_future(tick(url, over))
            coming = asyncio.ensure_future(come_and_go(server, over))
            nemesis = Nemesis(cluster, node, proxy, SEED)
            began, memory = load.moment("the first strike"), 0
            while began.seconds < SECONDS:
                story.append(await nemesis.strike())
                await nemesis.restore()
                await load.moment(f"{story[-1]}, and back").traffic(within_seconds=STUCK_SECONDS)
                if began.seconds < SECONDS / 3 or not memory:
                    memory = server.memory_bytes
                for task in (*reading, ticking, coming):
                    assert not task.done(), task.result()
            after = max(published)
            give_up = time.monotonic() + STUCK_SECONDS
            while any((client.last or 0) <= after for client in steady):
                assert time.monotonic() < give_up, [client.last for client in steady]
                await asyncio.sleep(0.05)
            over.set()
            grown = server.memory_bytes - memory
            gaps = sum(client.gaps for client in steady)
            print(
                f"{await coming} clients came and went, {len(published)} ticks, {gaps} gaps at "
                f"{STEADY} clients, memory {memory >> 20} MiB grew by {grown >> 10} KiB"
            )
            await ticking
            assert grown < SPARE_BYTES
            for connection in (*slow, *(client.connection for client in steady)):
                connection.transport.abort()
            await asyncio.gather(*reading, return_exceptions=True)
            assert "Traceback" not in server.printed, server.printed[-3000:]
    except Exception as exc:
        raise AssertionError(f"DJANGO_SOCKETS_NEMESIS_SEED={SEED}: after {story}: {exc}") from exc
