"""`def` handlers may block, and they leave no stale database connection behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.shop_process import script

SOCKETS = """
import asyncio, threading
from asgiref.sync import sync_to_async
from django.db import connection, connections
from django.urls import path
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient
from shop.models import Order
"""


@pytest.mark.parametrize(("age_seconds", "kept"), [(0, False), (None, True)])
def test_connections_end_with_the_handler_as_they_do_with_a_request(
    tmp_path: Path, age_seconds: int | None, kept: bool
) -> None:
    # In a file, because Django never closes a database in memory.
    database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "shop.sqlite3"),
        "CONN_MAX_AGE": age_seconds,
    }
    settings = {
        "DATABASES": {"default": database},
        "DJANGO_SOCKETS_CONFIG": {"url": "memory://", "handler_threads": 1},
    }
    printed = script(
        SOCKETS
        + """
class Counter(BaseSocketServer):
    def receive(self, data):
        used.append(connections["default"])  # This thread's own.
        open_before = connection.connection is not None
        self.send([Order.objects.count(), open_before])

async def main():
    async with SocketClient(Counter.as_asgi) as client:
        for _ in range(2):
            await client.send_json("count")
            print(*await client.receive_json())
    # The socket has ended, and its handlers with it.
    print(len(set(map(id, used))), used[0].connection is not None)

used = []
asyncio.run(main())
""",
        settings,
    )
    assert printed.splitlines() == ["0 False", f"0 {kept}", f"1 {kept}"]


def test_handlers_of_two_sockets_run_side_by_side_and_may_ask_for_djangos_one_thread() -> None:
    printed = script(
        SOCKETS
        + """
both = threading.Barrier(2, timeout=10)

class Meets(BaseSocketServer):
    def receive(self, data):
        both.wait()  # With one thread for all handlers this would never end.
        self.send("met")

class Asks(BaseSocketServer):
    async def receive(self, data):
        await self.async_send(await sync_to_async(threading.get_ident)())

async def main():
    async with SocketClient(Meets.as_asgi) as one, SocketClient(Meets.as_asgi) as two:
        for client in (one, two):
            await client.send_json("go")
        print(await one.receive_json(), await two.receive_json())
    async with SocketClient(Asks.as_asgi) as one, SocketClient(Asks.as_asgi) as two:
        for client in (one, two):
            await client.send_json("go")
        print(await one.receive_json() == await two.receive_json())

asyncio.run(main())
"""
    )
    assert printed.splitlines() == ["met met", "True"]
