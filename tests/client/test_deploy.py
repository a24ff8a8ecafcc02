"""A deploy restarts all servers, one after the other: users come back, and nobody sees a leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from django_sockets import Presence, open_hub
from django_sockets.delivery.events import Events
from django_sockets.testing.contract.base import with_options
from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer
from support.shop_process import Server, serving

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = int(os.environ.get("DJANGO_SOCKETS_DEPLOY_CLIENTS", "1000"))
WATCHERS = 10
SERVERS = 4
ROOM = "room:1"
GRACE_SECONDS = 20
"""Clients come back within 5 s. The rest is for a busy machine."""

SOURCE = """
import os
from django.conf import settings

settings.configure(SECRET_KEY="of the test", ALLOWED_HOSTS=["127.0.0.1"])

from django_sockets.sockets import BaseSocketServer

class Room(BaseSocketServer):
    config = os.environ["BROKER"]

    def may_subscribe(self, channel):
        return channel == "room:1"

    async def connect(self):
        key = self.scope["query_string"].decode()
        await self.async_track("room:1", os.environ["GENERATION"], key)

application = Room.as_asgi()
"""

pytestmark = [pytest.mark.load, pytest.mark.timeout(180)]


class Members:
    """The members, as a hub of another process is told them.

    Attributes:
        left: the members that were told to leave.
    """

    def __init__(self, events: Events) -> None:
        self.known = dict(events.recoveries[ROOM].presence or {})
        self.left: list[str] = []
        self._events = events

    async def until(self, infos: list[str]) -> None:
        """Wait until all clients are members, each with these infos."""
        while len(self.known) != CLIENTS or any(one != infos for one in self.known.values()):
            event = await anext(self._events)
            if isinstance(event, Presence):
                self.known |= {**event.joined, **event.updated}
                self.left += event.left


@contextmanager
def server(folder: Path, broker: str, port: int, generation: str) -> Iterator[Server]:
    more = {
        "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT))),
        "BROKER": broker,
        "GENERATION": generation,
        "DJANGO_SETTINGS_MODULE": "",
        # The clients spread themselves; a long drain would do it for them.
        "DJANGO_SOCKETS_DRAIN_SECONDS": "1",
    }
    own = "django_sockets.servers.uvicorn:WebSocketProtocol"
    command = [sys.executable, "-m", "uvicorn", "served:application", "--ws", own]
    command += ["--port", str(port), "--backlog", "4096", "--log-level", "warning"]
    with serving(command, port, folder / f"{generation}-{port}.log", **more) as running:
        yield running


@contextlib.asynccontextmanager
async def clients(ports: list[int]) -> AsyncIterator[asyncio.subprocess.Process]:
    words = ["tests/deploy.js", str(CLIENTS), str(WATCHERS), *map(str, ports)]
    process = await asyncio.create_subprocess_exec(
        "node",
        *words,
        cwd=ROOT / "client",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.fixture
def open_files() -> Iterator[None]:
    """As many open files as the clients need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CLIENTS + 500:
        pytest.skip(f"{CLIENTS} clients need more open files than {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, CLIENTS + 1000)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout
    text = await process.stdout.readline()
    assert text, "node has ended"
    found: dict[str, Any] = json.loads(text)
    return found


async def balance(process: asyncio.subprocess.Process, ports: list[int]) -> dict[str, Any]:
    """Let clients that connect from now on use these servers. Returns what the clients know."""
    assert process.stdin
    process.stdin.write(json.dumps(ports).encode() + b"\n")
    return await line(process)


async def test_nobody_leaves_while_all_servers_are_restarted_one_after_the_other(
    node: Any, open_files: None, fresh_valkey_server: CacheServer, tmp_path: Path
) -> None:
    (tmp_path / "served.py").write_text(SOURCE)
    broker = with_options(fresh_valkey_server.url, presence_grace_seconds=GRACE_SECONDS)
    ports = [free_port() for _ in range(SERVERS)]
    async with contextlib.AsyncExitStack() as stack:

        async def started(port: int, generation: str) -> Server:
            running = server(tmp_path, broker, port, generation)
            entered = await to_thread(running.__enter__)
            stack.push_async_callback(to_thread, running.__exit__, None, None, None)
            return entered

        servers = await asyncio.gather(*(started(port, "old") for port in ports))
        hub = await stack.enter_async_context(open_hub(broker))
        events = await stack.enter_async_context(hub.subscribe(ROOM, presence=True))
        members = Members(events)
        async with clients(ports) as process:
            assert await line(process) == {"subscribed": CLIENTS}
            await members.until(["old"])
            for port, old in zip(ports, servers, strict=True):
                # A load balancer sends nobody to a server that is about to end.
                await balance(process, [other for other in ports if other != port])
                await to_thread(old.end)
                await started(port, "new")
                await balance(process, ports)
            await members.until(["new"])
            report = await balance(process, ports)
    away = report["longest_ms"] / 1000
    print(f"\n{CLIENTS} clients connected {report['connections']} times, away {away:.1f} s at most")
    assert members.left == []
    assert report["left"] == []
    assert report["members"] == [CLIENTS] * WATCHERS
    assert report["connections"] >= 2 * CLIENTS
