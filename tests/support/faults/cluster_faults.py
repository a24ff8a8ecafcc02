"""Faults of a cluster that need more than one call of `CacheCluster`."""

from __future__ import annotations

import contextlib
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

from django_sockets.testing.census import answering, until
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.ports import HOST
from django_sockets.testing.proxy import FaultProxy
from django_sockets.testing.servers import CacheServer

__all__ = [
    "announce",
    "behind_proxy",
    "connections_received",
    "kill_clients",
    "move_with_keys",
    "setting",
]

GOSSIP_SECONDS = 5.0


def kill_clients(nodes: Iterable[CacheServer], kind: str = "PUBSUB") -> None:
    """Close every subscribed connection, as an administrator or an output buffer limit does.

    Args:
        kind: NORMAL closes the connections that publish instead.
    """
    for node in answering(nodes):
        node.execute("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def connections_received(nodes: Iterable[CacheServer]) -> int:
    """Return how many connections the nodes accepted. This call adds at most one to each."""
    lines = [line for node in nodes for line in node.execute("INFO", "stats").splitlines()]
    name = "total_connections_received:"
    return sum(int(line.removeprefix(name)) for line in lines if line.startswith(name))


@contextlib.contextmanager
def setting(nodes: Iterable[CacheServer], values: Mapping[str, str]) -> Iterator[None]:
    """CONFIG SET on the nodes inside a `with`. All nodes must answer at its end."""
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
                continue  # A node starts with its own configuration.
            if node.paused:
                node.resume()
            node.execute("CONFIG", "SET", name, value)


@contextlib.asynccontextmanager
async def behind_proxy(cluster: CacheCluster, node: CacheServer) -> AsyncIterator[FaultProxy]:
    """A proxy whose port the cluster announces for the node, until the node restarts."""
    async with FaultProxy(HOST, node.port) as proxy:
        await to_thread(announce, cluster, node, proxy.port)
        try:
            yield proxy
        finally:
            await to_thread(_without_proxy, cluster, node)


def announce(cluster: CacheCluster, node: CacheServer, port: int) -> None:
    """Make the whole cluster announce this port for the node. 0 stands for its own port.

    Raises:
        TimeoutError: a node still announces another port.
    """
    words = f"{HOST}:{port or node.port}@"
    node.execute("CONFIG", "SET", "cluster-announce-port", port)

    def known() -> bool:
        return all(words in n.execute("CLUSTER", "NODES") for n in answering(cluster.nodes))

    until(known, GOSSIP_SECONDS, "the nodes do not all name the proxy")


def _without_proxy(cluster: CacheCluster, node: CacheServer) -> None:
    cluster.restore()
    announce(cluster, node, 0)
    for replica in cluster.replicas_of(node):
        # Valkey 9.1: one that learned the new port while it thought its primary was down goes on
        # connecting to the old one.
        if replica.execute("ROLE")[2] != node.port:
            replica.kill()
            replica.start()


def move_with_keys(cluster: CacheCluster, slot: int) -> None:
    """Move a slot to another primary, key by key, as `valkey-cli --cluster reshard` does."""
    source = cluster.primary_of(slot)
    others = [node for node in cluster.primaries() if node is not source]
    target = others[0]
    source_id, target_id = (node.execute("CLUSTER", "MYID") for node in (source, target))
    target.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
    source.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
    while keys := source.execute("CLUSTER", "GETKEYSINSLOT", slot, 10):
        for key in keys:
            source.execute("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
    for node in (target, source, *others[1:]):
        node.execute("CLUSTER", "SETSLOT", slot, "NODE", target_id)
