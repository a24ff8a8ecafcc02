"""Coroutine hooks recover from an ended database connection as Django's async views do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.shop_process import script

SERVED = """
import asyncio, functools, json, socket
import uvicorn
from asgiref.sync import SyncToAsync, sync_to_async
from django.db import connection, connections
from websockets.asyncio.client import connect
from django_sockets.sockets import BaseSocketServer
from django_sockets.typed import on
from shop.models import Order

class Socket(BaseSocketServer):
    config = "memory://"

    async def error(self, exc):
        await self.async_send("failed")

def end_connections():
    # As a server or a proxy does after a while.
    if connection.connection is not None:
        connection.connection.close()

def is_open():
    return connection.connection is not None

class Calls:
    made = 0

executor = SyncToAsync.single_thread_executor
submit = executor.submit

def counted(call, *args):
    Calls.made += 1
    return submit(call, *args)

executor.submit = counted

async def served(app, talk):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(
        uvicorn.Config(app, ws="websockets-sansio", log_config=None, lifespan="off")
    )
    serving = asyncio.create_task(server.serve([listener]))
    await talk(lambda **options: connect(url + "/", proxy=None, **options))
    server.should_exit = True
    await serving

async def ask(client, data="go"):
    await client.send(json.dumps(data))
    return json.loads(await asyncio.wait_for(client.recv(), 10))
"""

HOOKS = """
class Receive(Socket):
    async def receive(self, data):
        await self.async_send(await Order.objects.acount())

class On(Socket):
    @on("go")
    async def go(self):
        await self.async_send(await Order.objects.acount())

class Undecodable(Socket):
    @on("other")
    async def other(self): ...

    async def decode_error(self, exc):
        await self.async_send(await Order.objects.acount())

class Broadcast(Socket):
    async def receive(self, data):
        await self.async_subscribe("room")
        await self.async_broadcast("room", 1)

    async def async_handle_received_broadcast(self, channel, data):
        await self.async_send(await Order.objects.acount())

class Plain(Socket):
    async def receive(self, data):
        await self.async_send(await sync_to_async(Order.objects.count)())

class Decorated(Socket):
    receive = functools.partialmethod(Receive.receive)  # Does not look like `async def`.
"""
AGES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "closed after each": ({"CONN_MAX_AGE": 0}, [0, 0, 0, 0]),
    "kept": ({"CONN_MAX_AGE": None}, [0, "failed", 0, "failed"]),
    "kept and checked": ({"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}, [0, 0, 0, 0]),
}


def database(folder: Path, **options: Any) -> dict[str, Any]:
    # In a file, because Django never closes a database in memory.
    name = str(folder / "shop.sqlite3")
    return {"DATABASES": {"default": {"ENGINE": "ending_database", "NAME": name, **options}}}


@pytest.mark.parametrize("age", AGES)
def test_after_the_database_has_ended_a_connection_every_hook_recovers(
    tmp_path: Path, age: str
) -> None:
    options, expected = AGES[age]
    printed = script(
        SERVED
        + HOOKS
        + """
import logging
logging.getLogger("django_sockets").setLevel(logging.CRITICAL)

async def talk(connecting):
    answers = []
    async with connecting() as client:
        for _ in range(4):
            answers.append(await ask(client, {"type": "go"}))
            if answers[-1] != "failed":
                await sync_to_async(end_connections)()
    everything.append(answers)

everything = []
for cls in (Receive, On, Undecodable, Broadcast, Plain, Decorated):
    asyncio.run(served(cls.as_asgi, talk))
    asyncio.run(sync_to_async(connections.close_all)())
print(json.dumps(everything))
""",
        database(tmp_path, **options),
    )
    assert json.loads(printed) == [expected] * 6


def test_a_handshake_recovers(tmp_path: Path) -> None:
    printed = script(
        SERVED
        + """
from django.contrib.auth import get_user_model
from django_sockets.middleware import BaseTokenAuthMiddleware

class Quiet(Socket):
    async def authorize(self):
        return await Order.objects.acount() == 0

    async def connect(self):
        await self.async_send(await Order.objects.acount())

async def get_user(token):
    return await get_user_model().objects.acreate(username=token)

async def talk(connecting):
    for name in ("ann", "bob", "cid"):
        headers = {"Authorization": f"Token {name}"}
        async with connecting(additional_headers=headers) as client:
            print(await asyncio.wait_for(client.recv(), 10))
        await sync_to_async(end_connections)()

asyncio.run(served(BaseTokenAuthMiddleware(Quiet.as_asgi, get_user=get_user), talk))
""",
        {
            **database(tmp_path, CONN_MAX_AGE=0),
            "INSTALLED_APPS": [
                "django.contrib.auth",
                "django.contrib.contenttypes",
                "django_sockets",
                "shop",
            ],
        },
    )
    assert printed.split() == ["0", "0", "0"]


def test_without_a_query_no_thread_is_woken_and_after_one_each_is_closed_once(
    tmp_path: Path,
) -> None:
    printed = script(
        SERVED
        + """
class Sometimes(Socket):
    async def receive(self, data):
        await self.async_send(await Order.objects.acount() if data == "count" else data)

async def talk(connecting):
    async with connecting() as client:
        for number in range(50):
            await ask(client, number)
        print(Calls.made)
        await ask(client, "count")
        await ask(client, 1)
        print(Calls.made)
        print(await sync_to_async(is_open)())
        Calls.made = 0
        for number in range(50):
            await ask(client, number)
        print(Calls.made)

asyncio.run(served(Sometimes.as_asgi, talk))
""",
        database(tmp_path, CONN_MAX_AGE=0),
    )
    # The query, and the closing after it.
    assert printed.split() == ["0", "2", "False", "0"]


def test_a_connection_that_was_open_before_the_first_hook_is_found(tmp_path: Path) -> None:
    printed = script(
        SERVED
        + """
class Idle(Socket):
    async def receive(self, data):
        await self.async_send(data)

async def talk(connecting):
    await Order.objects.acount()
    assert await sync_to_async(is_open)()
    async with connecting() as client:
        await ask(client)
    print(await sync_to_async(is_open)())

asyncio.run(served(Idle.as_asgi, talk))
""",
        database(tmp_path, CONN_MAX_AGE=0),
    )
    assert printed == "False\n"


def test_the_cursor_of_a_hook_outlives_the_hooks_of_others(tmp_path: Path) -> None:
    printed = script(
        SERVED
        + """
class Reads(Socket):
    async def receive(self, data):
        if data == "count":
            await self.async_send(await Order.objects.acount())
            return
        async for order in Order.objects.order_by("pk").aiterator(chunk_size=1):
            await self.async_send(order.pk)
            await go_on.acquire()

async def talk(connecting):
    async with connecting() as slow, connecting() as quick:
        assert await ask(slow, "all") == 1
        for number in range(2, 6):
            assert await ask(quick, "count") == 5
            go_on.release()
            assert json.loads(await asyncio.wait_for(slow.recv(), 10)) == number
        go_on.release()
        await ask(slow, "count")
    for _ in range(1000):
        if not await sync_to_async(is_open)():
            break
    print(await sync_to_async(is_open)())

async def main():
    global go_on
    go_on = asyncio.Semaphore(0)
    await served(Reads.as_asgi, talk)

Order.objects.bulk_create([Order() for _ in range(5)])
asyncio.run(main())
""",
        database(tmp_path, CONN_MAX_AGE=0),
    )
    assert printed == "False\n"


def test_in_a_test_case_nothing_is_closed(tmp_path: Path) -> None:
    printed = script(
        """
        import sys
        from asgiref.sync import sync_to_async
        from django.db import connection
        from django.test import TestCase
        from django.test.runner import DiscoverRunner
        from django_sockets.sockets import BaseSocketServer
        from django_sockets.testing import SocketClient
        from shop.models import Order

        class Counter(BaseSocketServer):
            config = "memory://"

            async def receive(self, data):
                await self.async_send(await Order.objects.acount())

        class Tests(TestCase):
            def setUp(self):
                Order.objects.create()
                self.raw = connection.connection

            async def test_it(self):
                async with SocketClient(Counter.as_asgi) as client:
                    for number in range(3):
                        await client.send_json("go")
                        assert await client.receive_json() == 1
                assert await sync_to_async(lambda: connection.connection)() is self.raw
                assert await Order.objects.acount() == 1

        runner = DiscoverRunner(verbosity=0)
        runner.setup_test_environment()
        old = runner.setup_databases()
        import unittest
        result = runner.run_suite(unittest.defaultTestLoader.loadTestsFromTestCase(Tests))
        runner.teardown_databases(old)
        print(result.testsRun, len(result.errors), len(result.failures))
        """,
        database(tmp_path, CONN_MAX_AGE=0, TEST={"NAME": str(tmp_path / "test.sqlite3")}),
    )
    assert printed.splitlines()[-1] == "1 0 0"
