"""Clients that connect and disconnect at any point for a long time leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from django_sockets.conf import load_config
from django_sockets.runtime import close_shared_hubs, shared_hub
from django_sockets.sockets import BaseSocketServer

CYCLES = int(os.environ.get("DJANGO_SOCKETS_CHURN_CYCLES", "3000"))
"""10,000 for the full test; memory is compared with that after the first 1,000."""
WARM_UP = 1000
AT_ONCE = 50

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def memory_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def one_client(application: Any, number: int, dice: random.Random) -> None:
    """Connect, and leave or be disconnected: at once, in a handler, in a subscribe, or later."""
    incoming: asyncio.Queue[Any] = asyncio.Queue()
    sent = asyncio.Event()

    async def send(event: Any) -> None:
        if dice.random() < 0.1:
            await asyncio.sleep(0)
        if event["type"] == "websocket.send":
            sent.set()

    scope = {"type": "websocket", "path": f"/{number}", "headers": []}
    task = asyncio.ensure_future(application(scope, incoming.get, send))
    incoming.put_nowait({"type": "websocket.connect"})
    way = dice.randrange(4)
    if way == 0:
        await sent.wait()
    else:
        for _ in range(dice.randrange(40)):
            await asyncio.sleep(0)
    if way == 3:
        task.cancel()
    else:
        incoming.put_nowait({"type": "websocket.disconnect", "code": 1001})
    await asyncio.wait([task], timeout=20)
    assert task.done(), f"client {number} is stuck"


@pytest.mark.parametrize("name", ["memory", "valkey"])
async def test_clients_that_are_cut_off_anywhere_leave_nothing(
    name: str, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("valkey_server") if name == "valkey" else None
    url = server.url if server is not None else "memory://churn"
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)

    class Member(BaseSocketServer):
        config = url

        async def connect(self) -> None:
            await self.async_subscribe(["everybody", self.scope["path"]])
            await self.async_send("joined")
            await self.async_broadcast(self.scope["path"], "to itself")

    hub = shared_hub(load_config(url))
    async with hub.subscribe("stays"):  # The connection is part of the baseline.
        baseline = None
        memory = 0
        for start in range(0, CYCLES, AT_ONCE):
            await asyncio.gather(
                *(one_client(Member.as_asgi, start + n, dice) for n in range(AT_ONCE))
            )
            if baseline is None:
                baseline = len(asyncio.all_tasks()), threading.active_count(), descriptors()
            if start + AT_ONCE == WARM_UP:
                memory = memory_bytes()
        await asyncio.sleep(0.1)
        assert hub.stats()["sockets"] == 0
        assert hub.stats()["channels"] == hub.stats()["subscribers"] == 1
        now = len(asyncio.all_tasks()), threading.active_count(), descriptors()
        assert baseline is not None
        assert all(n <= b for n, b in zip(now, baseline, strict=True)), (now, baseline)
        if server is not None:
            left = server.execute("PUBSUB", "CHANNELS", "*{*")
            own = [channel for channel in left if "{everybody}" in channel or "{/" in channel]
            assert not own, left
        assert memory_bytes() < 1.1 * memory
    await close_shared_hubs()
