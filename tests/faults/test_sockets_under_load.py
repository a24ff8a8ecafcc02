"""The cost of many sockets in one process for the server, and their recovery from faults."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from django_sockets import PublishError
from django_sockets.broadcaster import Broadcaster
from django_sockets.runtime import shared_hub
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient

pytestmark = pytest.mark.load


def connections(server: Any) -> int:
    """Connections of clients at the server, the one that asks excepted."""
    return len(server.execute("CLIENT", "LIST").splitlines()) - 1


async def wait_until(condition: Any, seconds: float = 5) -> None:
    """Ask the server until the condition is true, within a time limit."""
    give_up = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < give_up, "the server never got there"
        await asyncio.sleep(0.02)


async def in_room(url: str, count: int, **attributes: Any) -> list[SocketClient]:
    """That many clients, each in a room of its own and in the common one."""
    joined = 0
    everybody = asyncio.Event()

    class Member(BaseSocketServer):
        config = url

        async def connect(self) -> None:
            nonlocal joined
            await self.async_subscribe(["everybody", f"member-{self.scope['path']}"])
            joined += 1
            if joined == count:
                everybody.set()

    for name, value in attributes.items():
        setattr(Member, name, value)
    clients = [SocketClient(Member.as_asgi, f"/{number}") for number in range(count)]
    await asyncio.gather(*(client.connect() for client in clients))
    await asyncio.wait_for(everybody.wait(), 10)
    return clients


async def leave(clients: list[SocketClient]) -> None:
    await asyncio.gather(*(client.close() for client in clients))


async def test_500_sockets_hold_two_connections_and_leave_nothing(valkey_server: Any) -> None:
    before = connections(valkey_server)
    clients = await in_room(valkey_server.url, 500)
    await Broadcaster(valkey_server.url).async_broadcast("everybody", "hello")
    assert [await client.receive_json() for client in clients] == ["hello"] * 500
    assert connections(valkey_server) - before <= 2
    assert len(valkey_server.execute("PUBSUB", "CHANNELS", "*{*")) == 501
    await leave(clients)
    await wait_until(lambda: not valkey_server.execute("PUBSUB", "CHANNELS"))


async def test_1000_concurrent_broadcasts_share_four_connections_at_most(
    valkey_server: Any,
) -> None:
    before = connections(valkey_server)
    clients = await in_room(valkey_server.url, 1, outbox_messages=2000)
    broadcaster = Broadcaster(valkey_server.url)
    await asyncio.gather(
        *(broadcaster.async_broadcast("everybody", number) for number in range(1000))
    )
    assert connections(valkey_server) - before <= 4
    assert [await clients[0].receive_json() for _ in range(1000)] == list(range(1000))
    await leave(clients)


def test_10000_broadcasts_from_16_threads_cost_one_thread_and_two_connections(
    valkey_server: Any,
) -> None:
    script = f"""
import threading
from concurrent.futures import ThreadPoolExecutor
from django_sockets.broadcaster import Broadcaster

def view(number):
    Broadcaster({valkey_server.url!r}).broadcast("room", number)

with ThreadPoolExecutor(16) as wsgi:
    for _ in wsgi.map(view, range(10_000)):
        pass
names = [thread.name for thread in threading.enumerate() if "Pool" not in thread.name]
print(sorted(names), flush=True)
input()
"""
    before = connections(valkey_server)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "['MainThread', 'django_sockets loop']\n"
    assert 1 <= connections(valkey_server) - before <= 2
    process.communicate("\n", timeout=10)
    assert process.returncode == 0


async def test_a_6_mb_broadcast_arrives_whole_at_100_sockets(valkey_server: Any) -> None:
    clients = await in_room(valkey_server.url, 100)
    text = "0123456789abcdef" * (6 * 1024 * 1024 // 16)
    await Broadcaster(valkey_server.url).async_broadcast("everybody", text)
    for client in clients:
        assert await client.receive(20) == f'"{text}"'
    await leave(clients)


SERVER = """
import sys
from django_sockets.sockets import BaseSocketServer

class Member(BaseSocketServer):
    config = sys.argv[1]

    async def connect(self):
        await self.async_subscribe("everybody")
        await self.async_send("joined")

import uvicorn
uvicorn.run(Member.as_asgi, port=int(sys.argv[2]), log_level="warning", ws=sys.argv[3])
"""


@pytest.mark.parametrize(
    "protocol", ["websockets-sansio", "django_sockets.servers.uvicorn:WebSocketProtocol"]
)
async def test_a_burst_of_5000_closes_no_healthy_client_of_a_real_server(
    protocol: str, valkey_server: Any, unused_tcp_port: int
) -> None:
    import websockets

    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, valkey_server.url, str(unused_tcp_port), protocol
    )
    try:
        clients = []
        address = f"ws://127.0.0.1:{unused_tcp_port}/"
        for _ in range(50):
            clients.append(await connect_soon(address))
            assert json.loads(await clients[-1].recv()) == "joined"
        broadcaster = Broadcaster(valkey_server.url)

        async def receive_all(client: websockets.ClientConnection) -> list[int]:
            return [json.loads(await client.recv()) for _ in range(5000)]

        receiving = [asyncio.ensure_future(receive_all(client)) for client in clients]
        await asyncio.gather(
            *(broadcaster.async_broadcast("everybody", number) for number in range(5000))
        )
        for got in await asyncio.wait_for(asyncio.gather(*receiving), 40):
            assert got == list(range(5000))
        await asyncio.gather(*(client.close() for client in clients))
    finally:
        server.terminate()
        await server.wait()


async def connect_soon(address: str) -> Any:
    """Connect to a server that is starting."""
    import websockets

    give_up = time.monotonic() + 15
    while True:
        try:
            return await websockets.connect(address, compression=None, proxy=None)
        except OSError:
            assert time.monotonic() < give_up, "the server did not start"
            await asyncio.sleep(0.05)


async def test_a_broadcast_to_a_dead_server_raises_and_leaves_nothing(
    unused_tcp_port: int,
) -> None:
    url = f"redis://:secret@127.0.0.1:{unused_tcp_port}"
    threads = set(threading.enumerate())
    tasks = asyncio.all_tasks()
    broadcaster = Broadcaster(url)
    for _ in range(3):
        with pytest.raises(PublishError) as from_async:
            await broadcaster.async_broadcast("room", 1)
        with pytest.raises(PublishError) as from_sync:
            await asyncio.to_thread(broadcaster.broadcast, "room", 1)
        for error in (from_async, from_sync):
            assert f"redis://:***@127.0.0.1:{unused_tcp_port}" in str(error.value)
            assert "secret" not in str(error.value)
            assert error.value.failed == ("room",)
    assert asyncio.all_tasks() == tasks
    new = {thread.name for thread in set(threading.enumerate()) - threads}
    assert {name for name in new if not name.startswith("asyncio")} <= {"django_sockets loop"}


async def test_the_first_failed_connection_spoils_nothing_for_later(
    fresh_valkey_server: Any,
) -> None:
    url = fresh_valkey_server.url + "?subscribe_timeout_seconds=1.5"
    fresh_valkey_server.kill()
    broadcaster = Broadcaster(url)
    with pytest.raises(Exception, match="not subscribed to 'room'"):
        await broadcaster.async_subscribe("room")
    fresh_valkey_server.start()
    await broadcaster.async_subscribe("room")
    await broadcaster.async_broadcast("room", "after")
    assert await broadcaster.async_receive_broadcast() == ("room", "after")
    await broadcaster.aclose()
    await shared_hub(broadcaster._connection.config).aclose()


async def test_a_client_that_leaves_while_subscribing_leaves_nothing_on_the_server(
    fresh_valkey_server: Any,
) -> None:
    entered = asyncio.Event()

    class Member(BaseSocketServer):
        config = fresh_valkey_server.url

        async def connect(self) -> None:
            await self.async_subscribe("first")
            fresh_valkey_server.pause()
            entered.set()
            await self.async_subscribe("second")

    client = SocketClient(Member.as_asgi)
    await client.connect()
    await entered.wait()
    leaving = asyncio.ensure_future(client.close())
    fresh_valkey_server.resume()
    await leaving
    await wait_until(lambda: not fresh_valkey_server.execute("PUBSUB", "CHANNELS"))
