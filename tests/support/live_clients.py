"""Many websockets of the site `support.live_site`, on an event loop of their own."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from .loop_thread import LoopThread

__all__ = ["LiveClients"]

AT_ONCE = 25
"""Handshakes that run at the same time."""


class LiveClients:
    """Open websockets that read what comes, and the codes with which they were closed.

    Attributes:
        codes: user -> the close codes of its sockets.
    """

    def __init__(self, loop: LoopThread) -> None:
        self.codes: dict[str, list[int | None]] = defaultdict(list)
        self._loop = loop
        self._reading: set[asyncio.Task[None]] = set()
        self._unread: list[ClientConnection] = []
        self._changed = asyncio.Event()

    def open(self, sockets: list[tuple[int, str, str, str]]) -> None:
        """Open websockets: port, path, user and channels (of a query) of each."""
        self._loop.run(self._open(sockets))

    def say(self, channel: str, count: int) -> None:
        """Let one of the websockets send `count` messages to a channel."""
        self._loop.run(self._say(channel, count))

    def flood(self, port: int, user: str, count: int) -> None:
        """Open a websocket that never reads, and send it `count` messages of 100 KB."""
        self._loop.run(self._flood(port, user, count))

    def until_closed(self, user: str, count: int) -> list[int | None]:
        """The codes of a user, when that many of its sockets are closed."""
        self._loop.run(self._until_closed(user, count))
        return self.codes[user]

    def close(self) -> None:
        self._loop.run(self._close())

    async def _open(self, sockets: list[tuple[int, str, str, str]]) -> None:
        for first in range(0, len(sockets), AT_ONCE):
            opening = [self._connect(*one) for one in sockets[first : first + AT_ONCE]]
            for (_, _, user, _), client in zip(
                sockets[first:], await asyncio.gather(*opening), strict=False
            ):
                self._last = client
                self._reading.add(asyncio.create_task(self._read(user, client)))

    async def _connect(
        self, port: int, path: str, user: str, channel: str, **options: Any
    ) -> ClientConnection:
        client = await connect(
            f"ws://127.0.0.1:{port}/{path}/?user={user}&channel={channel}",
            compression=None,
            ping_interval=None,
            proxy=None,
            open_timeout=40,
            **options,
        )
        assert json.loads(await client.recv()) == "ready"
        return client

    async def _read(self, user: str, client: ClientConnection) -> None:
        try:
            while True:
                await client.recv()
        except ConnectionClosed:
            self.codes[user].append(client.close_code)
            self._changed.set()

    async def _say(self, channel: str, count: int) -> None:
        for number in range(count):
            await self._last.send(json.dumps({"channel": channel, "data": number}))

    async def _flood(self, port: int, user: str, count: int) -> None:
        slow = await self._connect(port, "chat", user, "flood", max_queue=1)
        self._unread.append(slow)
        for _ in range(count):
            await slow.send(json.dumps({"channel": "flood", "data": "x" * 100_000}))

    async def _until_closed(self, user: str, count: int) -> None:
        while len(self.codes[user]) < count:
            self._changed.clear()
            await self._changed.wait()

    async def _close(self) -> None:
        for task in self._reading:
            task.cancel()
        for client in self._unread:
            client.transport.abort()
        await asyncio.gather(*self._reading, return_exceptions=True)
