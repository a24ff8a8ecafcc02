"""The Valkey of one measurement: a single server, or a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from django_sockets.testing.census import count_connections
from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.servers import CacheServer, ValkeyServer
from django_sockets.testing.slots import slot_of

# A slow subscriber shall show as slow, not be cut off.
CONFIG = {"client-output-buffer-limit": "pubsub 0 0 0"}
NODE_TIMEOUT_MS = 10_000


class Broker:
    """What peers connect to.

    Attributes:
        sharded: messages go to the node of their channel's slot.
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
        """How many connections there are."""
        return count_connections(self.nodes)

    def rooms(self, prefix: str) -> int:
        """How many rooms with such names have somebody in them."""
        pattern = f"*{prefix}*"
        subscribed = self.nodes[0].execute("PUBSUB", "CHANNELS", pattern)
        # The core layer of channels_redis subscribes to nothing: it keeps its groups in keys.
        return len(subscribed) + len(self.nodes[0].execute("KEYS", pattern))

    def kill_subscribers(self) -> int:
        """Cut every subscribed connection; returns how many there were."""
        killed: int = self.nodes[0].execute("CLIENT", "KILL", "TYPE", "pubsub")
        return killed


def _last_slot(node: CacheServer) -> int:
    mine = next(line for line in node.execute("CLUSTER", "NODES").splitlines() if "myself" in line)
    return int(mine.split()[-1].split("-")[-1])


@contextlib.contextmanager
def running(primaries: int = 0) -> Iterator[Broker]:
    """A broker for the length of a `with`; 0 primaries: one server that is no cluster."""
    if not primaries:
        with ValkeyServer(config=CONFIG) as server:
            yield Broker(server.url, [server], sharded=False)
        return
    with CacheCluster(
        primaries=primaries, replicas=0, node_timeout_ms=NODE_TIMEOUT_MS, config=CONFIG
    ) as cluster:
        yield Broker(cluster.url, cluster.nodes, sharded=True)
