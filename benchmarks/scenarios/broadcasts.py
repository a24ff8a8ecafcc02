"""Messages at the highest rate: deliveries per second, and CPU time per delivery."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time

from ..brokers import Broker
from ..environments import Peer
from ..processes import Clients, Server
from ..publisher import publisher_for

TEXT = json.dumps({"text": "x" * 188})
WARM_UP = 20
FEWEST = 20


@dataclasses.dataclass(frozen=True)
class Broadcasts:
    """Messages to rooms with an equal number of sockets each.

    Attributes:
        sockets, rooms: the smaller number divides the larger one. With more rooms than sockets,
            each socket is in several rooms.
        messages: number of messages; a slow peer gets its share of them.
        text: the message, JSON of 200 bytes.
        count: the request to the client; see the module `client`.
        warm_up: number of messages before the measurement, at least one for each room.
    """

    sockets: int
    rooms: int
    messages: int
    text: str = TEXT
    count: str = "bulk"
    warm_up: int = WARM_UP

    def __call__(self, peer: Peer, broker: Broker) -> dict[str, float]:
        each = max(1, self.sockets // self.rooms)
        # Every room gets a message, so that the measurement has no first messages.
        warm_up = max(self.rooms, self.warm_up)
        messages = max(FEWEST, int(self.messages * peer.share))
        rooms = itertools.cycle(self._rooms())
        texts = [(next(rooms), self.text) for _ in range(warm_up + messages)]
        with Server(peer, broker) as server, publisher_for(peer, broker) as publisher:
            prepared = publisher.prepare(texts)
            with Clients(server.port, self._paths()) as clients:
                clients.ask(f"count {warm_up * each}")
                publisher.send(prepared[:warm_up])
                clients.answer("received")
                cpu, client_cpu = server.cpu_seconds(), clients.cpu_seconds()
                started = time.perf_counter()
                clients.ask(f"{self.count} {messages * each}")
                publisher.send(prepared[warm_up:])
                seconds = clients.answer("received")[0] - started
                cpu = server.cpu_seconds() - cpu
                client_cpu = clients.cpu_seconds() - client_cpu
                connections = broker.connections()
        deliveries = messages * each
        return {
            "deliveries_per_second": deliveries / seconds,
            "server_cpu_us_per_delivery": cpu / deliveries * 1e6,
            # This shows that the client is not the bottleneck.
            "client_cpu_us_per_delivery": client_cpu / deliveries * 1e6,
            # The publisher has one connection to each server, which is not counted.
            "broker_connections": connections - len(broker.nodes),
        }

    def _rooms(self) -> list[str]:
        """All rooms, ordered so that consecutive rooms have different sockets.

        No two consecutive messages can then share a write.
        """
        several = max(1, self.rooms // self.sockets)
        order = (first + n for n in range(several) for first in range(0, self.rooms, several))
        return [f"room-{number}" for number in order]

    def _paths(self) -> list[str]:
        if self.rooms <= self.sockets:
            return [f"room-{number % self.rooms}" for number in range(self.sockets)]
        several = self.rooms // self.sockets
        return [f"room-/{number * several}/{several}" for number in range(self.sockets)]
