"""A thousand sockets whose hub loses its link, with a history: each gets everything once."""

from __future__ import annotations

import asyncio
from asyncio import to_thread
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis

from django_sockets.broadcaster import Broadcaster
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.census import until
from django_sockets.testing.client import SocketClient
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.servers import CacheServer

pytestmark = [pytest.mark.load, pytest.mark.timeout(120)]

ROOM, SOCKETS, SENDERS, TURNS = "chat:1", 1000, 5, 3


class Chat(BaseSocketServer):
    async def connect(self) -> None:
        await self.async_subscribe(ROOM)
        await self.async_send("ready")

    async def receive(self, data: Any) -> None:
        await self.async_broadcast(ROOM, data, exclude_self=True)

    async def gap(self, channels: Sequence[str], reason: str) -> None:
        await self.async_send({"missed": list(channels)})


class Link:
    """Cuts the subscribing connections of a server, and keeps new ones out for a while.

    Connections that publish go on. Its own connection was open before.
    """

    def __init__(self, server: CacheServer) -> None:
        self._admin = redis.Redis(host=server.host, port=server.port)
        self._most = self._admin.config_get("maxclients")["maxclients"]

    def cut(self) -> None:
        self._admin.config_set("maxclients", 1)
        self._admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    def kept(self) -> int:
        """The offset of the newest message."""
        return int(self._admin.hget(f"django_sockets:{{{ROOM}}}:h", "o") or 0)

    def subscribers(self) -> int:
        """The number of subscribing connections."""
        return int(self._admin.info("clients")["pubsub_clients"])

    def mend(self) -> None:
        self._admin.config_set("maxclients", self._most)

    def close(self) -> None:
        self._admin.close()


@pytest.fixture
def link(fresh_valkey_server: CacheServer) -> Iterator[Link]:
    link = Link(fresh_valkey_server)
    yield link
    link.mend()
    link.close()


async def test_1000_sockets_miss_nothing_while_their_hub_has_no_link(
    fresh_valkey_server: CacheServer, link: Link
) -> None:
    url = quick(fresh_valkey_server.url, history_messages=1000, history_seconds=60)
    application = type("Room", (Chat,), {"config": url}).as_asgi  # type: ignore[attr-defined]
    clients = [SocketClient(application, f"/{number}") for number in range(SOCKETS)]
    for client in clients:
        await client.connect()
    expected: list[list[Any]] = [["ready"] for _ in clients]
    sent = 0

    async def say(sender: int, text: str) -> None:
        nonlocal sent
        sent += 1
        await clients[sender].send_json(text)
        await to_thread(until, lambda: link.kept() == sent, 5, "the message was not kept")
        for number, texts in enumerate(expected):
            if number != sender:
                texts.append(text)

    await say(0, "before")  # It opens the publishing connection.
    for turn in range(TURNS):
        link.cut()
        for sender in range(SENDERS):
            await say(sender, f"{sender} in turn {turn}")
        assert link.subscribers() == 0
        link.mend()
        await to_thread(until, lambda: link.subscribers() > 0, 5, "the link did not return")
        await say(SENDERS, f"after turn {turn}")
    await Broadcaster(url).async_broadcast(ROOM, "the end")
    for client, texts in zip(clients, expected, strict=True):
        assert [await client.receive_json() for _ in texts] == texts
        assert await client.receive_json() == "the end"
    await asyncio.gather(*(client.close() for client in clients))
