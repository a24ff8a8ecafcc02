"""The Valkey server or cluster of one measurement."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from django_sockets.testing.census import count_connections
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.servers import CacheServer, ValkeyServer
from django_sockets.testing.slots import slot_of

# Valkey must not disconnect a slow subscriber: it has to appear as slow in the results.
CONFIG = {"client-output-buffer-limit": "pubsub 0 0 0"}
NODE_TIMEOUT_MS = 10_000


class Broker:
    """The broker that the peers connect to.

    Attributes:
        sharded: whether messages go to the node of their channel's slot.
    """

    def __init__(self, url: str, nodes: Sequence[CacheServer], *, sharded: bool) -> None:
        self.url = url
        self.nodes = nodes
        self.sharded = sharded
        self._owners = [(node, _last_slot(node)) for node in nodes] if sharded else []

    def port_of(self, channel: bytes) -> int:
        """The port of the server that takes messages for the channel."""
        if not self.sharded:
            return self.nodes[0].port
        slot = slot_of(channel)
        return next(node.port for node, last in self._owners if slot <= last)

    def connections(self) -> int:
        """The number of client connections."""
        return count_connections(self.nodes)

    def rooms(self, prefix: str) -> int:
        """The number of rooms with this prefix that have a subscriber."""
        pattern = f"*{prefix}*"
        subscribed = self.nodes[0].execute("PUBSUB", "CHANNELS", pattern)
        # The core layer of channels_redis does not subscribe: it stores its groups in keys.
        return len(subscribed) + len(self.nodes[0].execute("KEYS", pattern))

    def kill_subscribers(self) -> int:
        """Close every subscribed connection; return their number."""
        killed: int = self.nodes[0].execute("CLIENT", "KILL", "TYPE", "pubsub")
        return killed


def _last_slot(node: CacheServer) -> int:
    mine = next(line for line in node.execute("CLUSTER", "NODES").splitlines() if "myself" in line)
    return int(mine.split()[-1].split("-")[-1])


@contextlib.contextmanager
def running(primaries: int = 0) -> Iterator[Broker]:
    """A broker that runs while the block runs. With 0 primaries it is one server, not a cluster."""
    if not primaries:
        with ValkeyServer(config=CONFIG) as server:
            yield Broker(server.url, [server], sharded=False)
        return
    with CacheCluster(
        primaries=primaries, replicas=0, node_timeout_ms=NODE_TIMEOUT_MS, config=CONFIG
    ) as cluster:
        yield Broker(cluster.url, cluster.nodes, sharded=True)
