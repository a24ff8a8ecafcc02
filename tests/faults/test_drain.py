"""SIGTERM under load: handlers finish, clients get close frames, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import websockets

from django_sockets.broadcaster import Broadcaster
from faults.test_sockets_under_load import connections
from support.faults.processes import serve

SOCKETS = int(os.environ.get("DJANGO_SOCKETS_DRAIN_SOCKETS", "1000"))
WINDOW_SECONDS = 5

SOURCE = """
import asyncio, os
from django_sockets.sockets import BaseSocketServer

def say(*words):
    # In one piece: two workers write to the same file.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Member(BaseSocketServer):
    config = os.environ["BROKER"]

    async def connect(self):
        self.name = self.scope["path"]
        await self.async_subscribe(["everybody", self.name])
        await self.async_send("joined")

    async def receive(self, data):
        await asyncio.sleep(data)
        await self.async_send("handled")
        say("handled", self.name)

    async def disconnect(self, code):
        say("disconnect", self.name, code)

application = Member.as_asgi
"""

pytestmark = [pytest.mark.load, pytest.mark.timeout(120)]


class Client:
    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.broadcasts = 0
        self.handled = 0
        self.ended_at = 0.0

    async def read(self) -> None:
        try:
            async for frame in self.connection:
                if frame == '"handled"':
                    self.handled += 1
                else:
                    self.broadcasts += 1
        except websockets.ConnectionClosed:
            pass
        self.ended_at = time.monotonic()


@pytest.mark.parametrize("server_name", ["uvicorn", "uvicorn-frames", "gunicorn-frames"])
async def test_sigterm_under_load_sends_everybody_away_in_order(
    server_name: str, fresh_valkey_server: Any, tmp_path: Path
) -> None:
    broker = fresh_valkey_server.url
    await Broadcaster(broker).async_broadcast("everybody", "the test's own connection")
    before = connections(fresh_valkey_server)
    async with serve(
        server_name,
        SOURCE,
        tmp_path,
        BROKER=broker,
        DJANGO_SOCKETS_DRAIN_SECONDS=str(WINDOW_SECONDS),
    ) as server:
        clients = []
        for start in range(0, SOCKETS, 50):
            names = range(start, min(start + 50, SOCKETS))
            opened = await asyncio.gather(*(server.connect(f"/{name}") for name in names))
            for connection in opened:
                assert await connection.recv() == '"joined"'
                clients.append(Client(connection))
        reading = [asyncio.ensure_future(client.read()) for client in clients]

        over = asyncio.Event()

        async def load() -> None:
            broadcaster = Broadcaster(broker)
            number = 0
            while not over.is_set():
                await broadcaster.async_broadcast("everybody", number)
                number += 1
                await asyncio.sleep(0.25)

        loading = asyncio.ensure_future(load())
        await asyncio.sleep(1)
        busy = clients[:: SOCKETS // 20]
        for client in busy:
            await client.connection.send("0.4")
        await asyncio.sleep(0.2)
        began = time.monotonic()
        status = await server.terminate(WINDOW_SECONDS + 15)
        over.set()
        await asyncio.wait_for(asyncio.gather(*reading, loading), 10)

        codes = Counter(client.connection.close_code for client in clients)
        assert codes == {1012: SOCKETS}
        ends = sorted(client.ended_at - began for client in clients)
        print(f"{server_name}: closes from {ends[0]:.2f} to {ends[-1]:.2f} s, exit {status}")
        assert ends[-1] < WINDOW_SECONDS
        # Spread: about as many in the second quarter of the closes as in the third.
        middle = ends[SOCKETS // 2]
        assert 0.2 * WINDOW_SECONDS < middle < 0.7 * WINDOW_SECONDS
        assert all(client.handled == 1 for client in busy)
        assert all(client.broadcasts for client in clients)
        assert status in (0, -15)
        printed = Counter(server.printed.splitlines())
        expected = {f"disconnect /{name} 1012" for name in range(SOCKETS)}
        assert {line for line in printed if line.startswith("disconnect")} == expected
        assert all(printed[line] == 1 for line in expected)
        assert sum(line.startswith("handled") for line in printed.elements()) == len(busy)
        assert "Traceback" not in server.printed
    assert not fresh_valkey_server.execute("PUBSUB", "CHANNELS", "*everybody*")
    assert connections(fresh_valkey_server) <= before
