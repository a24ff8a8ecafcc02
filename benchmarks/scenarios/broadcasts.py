"""Messages at the highest rate: deliveries per second, and CPU time per delivery."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Sequence

from ..brokers import Broker
from ..environments import Peer
from ..processes import Clients, Server
from ..publisher import publisher_for

TEXT = json.dumps({"text": "x" * 188})
WARM_UP = 20
FEWEST = 20
ENOUGH_SECONDS = 1.0
MOST_BURSTS = 15
"""Bursts are repeated until they have taken long enough: a burst of the fastest servers takes only
a tenth of a second, and the median of several is more exact."""


@dataclasses.dataclass(frozen=True)
class Broadcasts:
    """Messages to rooms with an equal number of sockets each; the figures are medians of bursts.

    Attributes:
        sockets, rooms: the smaller number divides the larger one. With more rooms than sockets,
            each socket is in several rooms.
        messages: number of messages of a burst; a slow peer gets its share of them.
        in_all_rooms: every socket is in every room.
        deflate: the clients offer compression as browsers do, and the server compresses.
        compressing_share: with `deflate`, the share of the messages of a peer that compresses them
            for each socket again.
        texts: the messages, in turn; JSON of 200 bytes.
        count: the request to the client; see the module `client`.
        warm_up: number of messages before the measurement, at least one for each room.
    """

    sockets: int
    rooms: int
    messages: int
    in_all_rooms: bool = False
    deflate: bool = False
    compressing_share: float = 1.0
    texts: Sequence[str] = (TEXT,)
    count: str = "bulk"
    warm_up: int = WARM_UP

    def __call__(self, peer: Peer, broker: Broker) -> dict[str, float]:
        each = self.sockets if self.in_all_rooms else max(1, self.sockets // self.rooms)
        each -= peer.leaves_out_sender
        # Every room gets a message, so that the measurement has no first messages.
        warm_up = max(self.rooms, self.warm_up)
        in_turn = zip(itertools.cycle(self._rooms()), itertools.cycle(self.texts), strict=False)
        messages = self._messages(peer)
        bursts: list[dict[str, float]] = []
        seconds = 0.0
        with (
            Server(peer, broker, deflate=self.deflate) as server,
            publisher_for(peer, broker) as publisher,
            Clients(server.port, self._paths(), deflate=self.deflate) as clients,
        ):
            clients.ask(f"count {warm_up * each}")
            publisher.send(publisher.prepare(itertools.islice(in_turn, warm_up)))
            clients.answer("received")
            while seconds < ENOUGH_SECONDS and len(bursts) < MOST_BURSTS:
                prepared = publisher.prepare(itertools.islice(in_turn, messages))
                cpu, client_cpu = server.cpu_seconds(), clients.cpu_seconds()
                started = time.perf_counter()
                clients.ask(f"{self.count} {messages * each}")
                publisher.send(prepared)
                received_at, received_bytes = clients.answer("received")
                cpu = server.cpu_seconds() - cpu
                client_cpu = clients.cpu_seconds() - client_cpu
                seconds += received_at - started
                deliveries = messages * each
                bursts.append(
                    {
                        "deliveries_per_second": deliveries / (received_at - started),
                        "bytes_per_delivery": received_bytes / deliveries,
                        "server_cpu_us_per_delivery": cpu / deliveries * 1e6,
                        # This shows that the client is not the bottleneck.
                        "client_cpu_us_per_delivery": client_cpu / deliveries * 1e6,
                    }
                )
            connections = broker.connections()
        return {
            **{name: statistics.median(burst[name] for burst in bursts) for name in bursts[0]},
            # The publisher has one connection to each server, which is not counted.
            "broker_connections": connections - len(broker.nodes),
        }

    def _messages(self, peer: Peer) -> int:
        """Number of messages of a burst."""
        share = peer.share
        if self.deflate and peer.compresses_each:
            share *= self.compressing_share
        return max(FEWEST, int(self.messages * share))

    def _rooms(self) -> list[str]:
        """All rooms, ordered so that consecutive rooms have different sockets.

        No two consecutive messages can then share a write.
        """
        several = 1 if self.in_all_rooms else max(1, self.rooms // self.sockets)
        order = (first + n for n in range(several) for first in range(0, self.rooms, several))
        return [f"room-{number}" for number in order]

    def _paths(self) -> list[str]:
        if self.in_all_rooms:
            return [f"room-/0/{self.rooms}"] * self.sockets
        if self.rooms <= self.sockets:
            return [f"room-{number % self.rooms}" for number in range(self.sockets)]
        several = self.rooms // self.sockets
        return [f"room-/{number * several}/{several}" for number in range(self.sockets)]
