"""A connect storm, and the memory of idle sockets."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from ..brokers import Broker
from ..contenders import BARE
from ..environments import Peer
from ..processes import Clients, Server
from ..publisher import publisher_for
from ..results import Failed

WARM_UP = 100
"""Number of sockets before the measurement, so that imports and first connections do not count."""
GIVE_UP_SECONDS = 30.0
POLL_SECONDS = 0.005


@dataclasses.dataclass(frozen=True)
class Storm:
    """Sockets connect as fast as they can, and each subscribes to a channel of its own.

    The storm ends when every handshake is done and the broker knows every channel. The sockets send
    no greeting, because the bare server sends none.

    Attributes:
        sockets: number of sockets of the storm.
        before: number of sockets that exist when it begins.
    """

    sockets: int
    before: int

    def __call__(self, peer: Peer, broker: Broker) -> dict[str, float]:
        sockets = min(self.sockets, peer.most_joining)
        first = [f"first-{number}" for number in range(self.before)]
        rooms = [f"room-{number}" for number in range(sockets)]
        with (
            Server(peer, broker, silent=True) as server,
            Clients(server.port, first, greets=False),
        ):
            _wait(peer, broker, "first-", self.before)
            cpu, memory_bytes = server.cpu_seconds(), server.memory_bytes()
            with Clients(server.port, rooms, greets=False) as clients:
                joined_at = max(clients.joined_at, _wait(peer, broker, "room-", sockets))
                cpu = server.cpu_seconds() - cpu
                memory_bytes = server.memory_bytes() - memory_bytes
                connections = broker.connections()
        return {
            "sockets": sockets,
            "handshakes_per_second": sockets / (joined_at - clients.started_at),
            "server_cpu_us_per_handshake": cpu / sockets * 1e6,
            "kib_per_socket": memory_bytes / sockets / 1024,
            "broker_connections": connections,
        }


@dataclasses.dataclass(frozen=True)
class Idle:
    """Sockets that are subscribed to one channel and idle.

    Attributes:
        texts: messages that each socket has received before.
        deflate: the clients offer compression as browsers do, and the server compresses.
    """

    sockets: int
    texts: Sequence[str] = ()
    deflate: bool = False

    def __call__(self, peer: Peer, broker: Broker) -> dict[str, float]:
        sockets = min(self.sockets, peer.most_joining)
        with (
            Server(peer, broker, deflate=self.deflate) as server,
            self._clients(server, peer, "first-0", WARM_UP) as first,
        ):
            self._broadcast(peer, broker, "first-0", first, WARM_UP)
            memory_bytes = server.memory_bytes()
            with self._clients(server, peer, "room-0", sockets) as clients:
                self._broadcast(peer, broker, "room-0", clients, sockets)
                memory_bytes = server.memory_bytes() - memory_bytes
                connections = broker.connections()
        return {
            "sockets": sockets,
            "kib_per_socket": memory_bytes / sockets / 1024,
            "broker_connections": connections,
        }

    def _clients(self, server: Server, peer: Peer, room: str, sockets: int) -> Clients:
        paths = [room] * sockets
        return Clients(server.port, paths, greets=peer.greets, deflate=self.deflate)

    def _broadcast(
        self, peer: Peer, broker: Broker, room: str, clients: Clients, sockets: int
    ) -> None:
        """Send the texts to all sockets."""
        if not self.texts:
            return
        with publisher_for(peer, broker) as publisher:
            clients.ask(f"count {len(self.texts) * sockets}")
            publisher.send(publisher.prepare((room, text) for text in self.texts))
            clients.answer("received")


def _wait(peer: Peer, broker: Broker, prefix: str, rooms: int) -> float:
    """Wait until the broker knows `rooms` rooms; return the `time.perf_counter()` of that time."""
    deadline = time.perf_counter() + GIVE_UP_SECONDS
    while True:
        asked_at = time.perf_counter()  # The time of the question: the answer takes some ms.
        known = rooms if peer is BARE else broker.rooms(prefix)
        if known >= rooms:
            return asked_at
        if asked_at > deadline:
            raise Failed(f"the broker knows {known} of {rooms} rooms")
        time.sleep(POLL_SECONDS)
