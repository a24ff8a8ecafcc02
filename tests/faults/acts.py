"""Faults of a cluster that take more than a call of `CacheCluster`."""

from __future__ import annotations

import contextlib
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

from django_sockets.testing.census import answering, until
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.ports import HOST
from django_sockets.testing.proxy import FaultProxy
from django_sockets.testing.servers import CacheServer

__all__ = ["behind_proxy", "connections_received", "kill_clients", "setting"]

GOSSIP_SECONDS = 5.0


def kill_clients(nodes: Iterable[CacheServer]) -> None:
    """End every connection that subscribes, as an administrator or an output buffer does."""
    for node in answering(nodes):
        node.execute("CLIENT", "KILL", "TYPE", "PUBSUB")


def connections_received(nodes: Iterable[CacheServer]) -> int:
    """How many connections the nodes have accepted, less than one for asking each of them."""
    lines = [line for node in nodes for line in node.execute("INFO", "stats").splitlines()]
    name = "total_connections_received:"
    return sum(int(line.removeprefix(name)) for line in lines if line.startswith(name))


@contextlib.contextmanager
def setting(nodes: Iterable[CacheServer], values: Mapping[str, str]) -> Iterator[None]:
    """CONFIG SET on the nodes for the length of a `with`; all must answer at its end."""
    before = [
        (node, name, node.execute("CONFIG", "GET", name)[1]) for node in nodes for name in values
    ]
    for node, name, _ in before:
        node.execute("CONFIG", "SET", name, values[name])
    try:
        yield
    finally:
        for node, name, value in before:
            if not node.running:
                continue  # It starts with its own configuration.
            if node.paused:
                node.resume()
            node.execute("CONFIG", "SET", name, value)


@contextlib.asynccontextmanager
async def behind_proxy(cluster: CacheCluster, node: CacheServer) -> AsyncIterator[FaultProxy]:
    """A proxy whose port the whole cluster names as the node's."""

    async def announce(port: int) -> None:
        shown = port or node.port
        await to_thread(node.execute, "CONFIG", "SET", "cluster-announce-port", port)
        await to_thread(
            until,
            lambda: all(_names(other, shown) for other in answering(cluster.nodes)),
            GOSSIP_SECONDS,
            "the nodes do not name the proxy",
        )

    async with FaultProxy(HOST, node.port) as proxy:
        await announce(proxy.port)
        try:
            yield proxy
        finally:
            await announce(0)


def _names(node: CacheServer, port: int) -> bool:
    return f"{HOST}:{port}@" in node.execute("CLUSTER", "NODES")
