"""What the fault tests ask of the person who holds the server."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from ..servers import CacheServer

__all__ = ["CacheControl", "ServerControl"]


class ServerControl(Protocol):
    """A running server of the test's own. Waive the tests for what yours cannot do."""

    url: str
    nodes: int
    """How many servers a client may hold connections to."""

    async def kill(self) -> None:
        """End it as a crash does."""

    async def start(self) -> None:
        """Start it again at the same address; return once it answers."""

    async def pause(self) -> None:
        """Stop it where it is: connections stay open, nothing answers."""

    async def resume(self) -> None:
        """Let it go on."""

    async def cut_subscribers(self) -> None:
        """Close every connection that carries subscriptions."""

    async def cut_publishers(self) -> None:
        """Close every connection that carries none."""

    async def demote(self) -> None:
        """Make it a replica that accepts a publish and delivers it to its own subscribers only."""

    async def promote(self) -> None:
        """Make it the primary again."""

    async def connections(self) -> int:
        """How many connections it has, those of this object left out."""

    async def channels(self) -> int:
        """How many of the users' channels have a subscription."""

    async def add_user(self, name: str, password: str) -> None:
        """Add a user who may do everything."""


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
