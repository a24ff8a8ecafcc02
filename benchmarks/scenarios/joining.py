"""A storm of connections, and what they hold when they are idle afterwards."""

from __future__ import annotations

import dataclasses

from ..brokers import Broker
from ..environments import Peer
from ..processes import Clients, Server

WARM_UP = 100


@dataclasses.dataclass(frozen=True)
class Joining:
    """Sockets connect and subscribe as fast as they can; one has joined when it is greeted.

    Attributes:
        own_rooms: a room for each socket, and not one for all.
    """

    sockets: int
    own_rooms: bool

    def __call__(self, peer: Peer, broker: Broker) -> dict[str, float]:
        sockets = min(self.sockets, peer.most_joining)
        paths = [f"room-{number if self.own_rooms else 0}" for number in range(sockets)]
        # What is imported and opened for the first sockets is not the others' cost.
        first = [f"first-{number if self.own_rooms else 0}" for number in range(WARM_UP)]
        with Server(peer, broker) as server, Clients(server.port, first, greets=peer.greets):
            cpu, memory_bytes = server.cpu_seconds(), server.memory_bytes()
            with Clients(server.port, paths, greets=peer.greets) as clients:
                cpu = server.cpu_seconds() - cpu
                memory_bytes = server.memory_bytes() - memory_bytes
                connections = broker.connections()
        return {
            "handshakes_per_second": sockets / clients.joined_seconds,
            "server_cpu_us_per_handshake": cpu / sockets * 1e6,
            "kib_per_socket": memory_bytes / sockets / 1024,
            "broker_connections": connections,
        }
