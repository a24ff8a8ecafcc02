"""The controls of several servers that belong together: cluster, sentinel set, serverless."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from ..census import answering
from ..clusters import CacheCluster
from ..sentinels import SentinelTrio
from ..serverless import ServerlessEmulation
from ..servers import CacheServer

__all__ = ["ClusterControl", "SentinelControl", "ServerlessControl"]


class _Topology(Protocol):
    @property
    def url(self) -> str: ...
    def restore(self) -> None: ...
    def connections(self) -> int: ...
    def channels(self) -> int: ...


class _Together:
    """What the controls share: acts on all servers with data."""

    nodes: int

    def __init__(self, topology: _Topology, servers: Sequence[CacheServer]) -> None:
        self._topology = topology
        self._servers = servers
        self.url = topology.url

    async def start(self) -> None:
        await asyncio.to_thread(self._topology.restore)

    async def _execute(self, *command: str) -> None:
        for server in answering(self._servers):
            await asyncio.to_thread(server.execute, *command)

    async def cut_subscribers(self) -> None:
        await self._execute("CLIENT", "KILL", "TYPE", "pubsub")

    async def cut_publishers(self) -> None:
        await self._execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def connections(self) -> int:
        return await asyncio.to_thread(self._topology.connections)

    async def channels(self) -> int:
        return await asyncio.to_thread(self._topology.channels)

    async def add_user(self, name: str, password: str) -> None:
        await self._execute("ACL", "SETUSER", name, "on", f">{password}", "~*", "&*", "+@all")


class ClusterControl(_Together):
    """The control of a `CacheCluster`: what is done is done to all nodes."""

    def __init__(self, cluster: CacheCluster) -> None:
        super().__init__(cluster, cluster.nodes)
        self.cluster = cluster
        self.nodes = len(cluster.nodes)

    async def kill(self) -> None:
        await asyncio.to_thread(self.cluster.kill_all)

    async def pause(self) -> None:
        for node in self.cluster.nodes:
            node.pause()

    async def resume(self) -> None:
        for node in self.cluster.nodes:
            node.resume()

    async def demote(self) -> None:
        """Let a replica of every primary take over."""
        for primary in await asyncio.to_thread(self.cluster.primaries):
            replica, *_ = await asyncio.to_thread(self.cluster.replicas_of, primary)
            await asyncio.to_thread(self.cluster.failover, replica)

    async def promote(self) -> None:
        await asyncio.to_thread(self.cluster.restore)


class SentinelControl(_Together):
    """The control of a `SentinelTrio`: nodes fail together, sentinels go on."""

    nodes = 2
    """The primary, and a sentinel."""

    def __init__(self, trio: SentinelTrio) -> None:
        super().__init__(trio, trio.nodes)
        self.trio = trio

    async def kill(self) -> None:
        for node in self.trio.nodes:
            node.kill()

    async def pause(self) -> None:
        for node in self.trio.nodes:
            node.pause()

    async def resume(self) -> None:
        for node in self.trio.nodes:
            node.resume()

    async def demote(self) -> None:
        """Make the primary a replica of nothing; the sentinels notice after a while."""
        primary = await asyncio.to_thread(self.trio.primary)
        await asyncio.to_thread(primary.execute, "REPLICAOF", "127.0.0.1", "1")

    async def promote(self) -> None:
        await asyncio.to_thread(self.trio.restore)


class ServerlessControl(_Together):
    """The control of a `ServerlessEmulation`. Nobody outside such a service can demote a node."""

    nodes = 1

    def __init__(self, service: ServerlessEmulation) -> None:
        super().__init__(service, [service.node])
        self.service = service

    async def kill(self) -> None:
        await asyncio.to_thread(self.service.kill)

    async def pause(self) -> None:
        self.service.pause()

    async def resume(self) -> None:
        self.service.resume()

    async def demote(self) -> None:
        raise RuntimeError("waive this test: one node has nobody to follow")

    async def promote(self) -> None:
        raise RuntimeError("waive this test: one node has nobody to follow")
