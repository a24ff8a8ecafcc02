"""The interface through which the fault tests control a server."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from ..servers import CacheServer

__all__ = ["CacheControl", "ServerControl"]


class ServerControl(Protocol):
    """A running server for one test only. Waive the tests of methods that you cannot offer."""

    url: str
    nodes: int
    """The number of servers to which a client may hold connections."""

    async def kill(self) -> None:
        """End the server like a crash."""

    async def start(self) -> None:
        """Start the server again at the same address, and return when it answers."""

    async def pause(self) -> None:
        """Pause the server: connections stay open without answers."""

    async def resume(self) -> None:
        """Resume the server after `pause`."""

    async def cut_subscribers(self) -> None:
        """Close every connection that carries subscriptions."""

    async def cut_publishers(self) -> None:
        """Close every connection that carries no subscriptions."""

    async def demote(self) -> None:
        """Make the server a replica, which delivers a publish to its own subscribers only."""

    async def promote(self) -> None:
        """Make the server the primary again."""

    async def connections(self) -> int:
        """The number of connections to the server, without those of this object."""

    async def channels(self) -> int:
        """The number of users' channels that have a subscription."""

    async def add_user(self, name: str, password: str) -> None:
        """Add a user with all permissions."""


class CacheControl:
    """The control of a `CacheServer`."""

    nodes = 1

    def __init__(self, server: CacheServer) -> None:
        self.server = server
        self.url = server.url

    async def kill(self) -> None:
        await asyncio.to_thread(self.server.kill)

    async def start(self) -> None:
        await asyncio.to_thread(self.server.start)

    async def pause(self) -> None:
        self.server.pause()

    async def resume(self) -> None:
        self.server.resume()

    async def execute(self, *command: str) -> Any:
        return await asyncio.to_thread(self.server.execute, *command)

    async def cut_subscribers(self) -> None:
        await self.execute("CLIENT", "KILL", "TYPE", "pubsub")

    async def cut_publishers(self) -> None:
        await self.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def demote(self) -> None:
        await self.execute("REPLICAOF", "127.0.0.1", "1")

    async def promote(self) -> None:
        await self.execute("REPLICAOF", "NO", "ONE")

    async def connections(self) -> int:
        clients = await self.execute("CLIENT", "LIST")
        return sum("cmd=client|list" not in line for line in clients.splitlines())

    async def channels(self) -> int:
        return len(await self.execute("PUBSUB", "CHANNELS", "*:{*"))

    async def add_user(self, name: str, password: str) -> None:
        await self.execute("ACL", "SETUSER", name, "on", f">{password}", "~*", "&*", "+@all")
