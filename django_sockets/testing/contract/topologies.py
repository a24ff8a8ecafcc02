"""The controls of clusters, sentinel sets, a serverless cache and independent hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from ..census import answering, each
from ..clusters import CacheCluster
from ..sentinels import SentinelTrio
from ..serverless import ServerlessEmulation
from ..servers import CacheServer
from .control import CacheControl

__all__ = ["ClusterControl", "HostsControl", "SentinelControl", "ServerlessControl"]


_T = TypeVar("_T")


class _Topology(Protocol):
    @property
    def url(self) -> str: ...
    def restore(self) -> None: ...
    def connections(self) -> int: ...
    def channels(self) -> int: ...


class _TopologyControl:
    """Base of the controls: acts on all servers that hold data."""

    nodes: int

    def __init__(self, topology: _Topology, servers: Sequence[CacheServer]) -> None:
        self._topology = topology
        self._servers = servers
        self.url = topology.url

    async def kill(self) -> None:
        await asyncio.to_thread(each, CacheServer.kill, self._servers)

    async def start(self) -> None:
        await asyncio.to_thread(self._topology.restore)

    async def pause(self) -> None:
        for server in self._servers:
            server.pause()

    async def resume(self) -> None:
        for server in self._servers:
            server.resume()

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


class ClusterControl(_TopologyControl):
    """The control of a `CacheCluster`; it acts on all nodes."""

    def __init__(self, cluster: CacheCluster) -> None:
        super().__init__(cluster, cluster.nodes)
        self.cluster = cluster
        self.nodes = len(cluster.nodes)

    async def demote(self) -> None:
        """Promote a replica of every primary."""
        for primary in await asyncio.to_thread(self.cluster.primaries):
            replica, *_ = await asyncio.to_thread(self.cluster.replicas_of, primary)
            await asyncio.to_thread(self.cluster.failover, replica)

    async def promote(self) -> None:
        await asyncio.to_thread(self.cluster.restore)


class SentinelControl(_TopologyControl):
    """The control of a `SentinelTrio`: all nodes fail together, the sentinels keep running."""

    nodes = 4
    """A client connects to the primary and to three sentinels."""

    def __init__(self, trio: SentinelTrio) -> None:
        super().__init__(trio, trio.nodes)
        self.trio = trio

    async def demote(self) -> None:
        """Make the primary a replica of a dead address. The sentinels notice this later."""
        primary = await asyncio.to_thread(self.trio.primary)
        await asyncio.to_thread(primary.execute, "REPLICAOF", "127.0.0.1", "1")

    async def promote(self) -> None:
        await asyncio.to_thread(self.trio.restore)


class ServerlessControl(_TopologyControl):
    """The control of a `ServerlessEmulation`. Its node cannot be demoted."""

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
        raise RuntimeError("waive this test: the only node cannot be demoted")

    async def promote(self) -> None:
        raise RuntimeError("waive this test: the only node cannot be demoted")


class HostsControl:
    """The control of independent hosts; it acts on all of them."""

    def __init__(self, servers: Sequence[CacheServer]) -> None:
        self._controls = [CacheControl(server) for server in servers]
        self.nodes = len(servers)
        self.url = " ".join(control.url for control in self._controls)

    async def _each(self, act: Callable[[CacheControl], Awaitable[_T]]) -> list[_T]:
        return await asyncio.gather(*map(act, self._controls))

    async def kill(self) -> None:
        await self._each(CacheControl.kill)

    async def start(self) -> None:
        await self._each(CacheControl.start)

    async def pause(self) -> None:
        await self._each(CacheControl.pause)

    async def resume(self) -> None:
        await self._each(CacheControl.resume)

    async def cut_subscribers(self) -> None:
        await self._each(CacheControl.cut_subscribers)

    async def cut_publishers(self) -> None:
        await self._each(CacheControl.cut_publishers)

    async def demote(self) -> None:
        await self._each(CacheControl.demote)

    async def promote(self) -> None:
        await self._each(CacheControl.promote)

    async def connections(self) -> int:
        return sum(await self._each(CacheControl.connections))

    async def channels(self) -> int:
        return sum(await self._each(CacheControl.channels))

    async def add_user(self, name: str, password: str) -> None:
        await self._each(lambda control: control.add_user(name, password))
