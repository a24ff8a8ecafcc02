"""What is measured of one peer against a running broker."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from collections.abc import Callable

from . import wire
from .environments import Peer
from .processes import Clients, Server

Result = dict[str, float]
TEXT = json.dumps({"text": "x" * 188})
WARM_UP = 20


@dataclasses.dataclass(frozen=True)
class Broadcasts:
    """Messages to rooms with an equal number of sockets each, as fast as they go."""

    sockets: int
    rooms: int
    messages: int
    text: str = TEXT

    def __call__(self, peer: Peer, broker_port: int) -> Result:
        message = getattr(wire, peer.module)()
        rooms = [f"room-{number}" for number in range(self.rooms)]
        each = self.sockets // self.rooms
        warm_up = max(WARM_UP, self.rooms)
        commands = [
            message(rooms[n % self.rooms], self.text) for n in range(warm_up + self.messages)
        ]
        with Server(peer, broker_port) as server:
            with Clients(server.port, 20, 1):
                pass  # What is imported and opened for the first socket is not the others' cost.
            empty_bytes = server.memory_bytes()
            with Clients(server.port, self.sockets, self.rooms) as clients:
                idle_bytes = server.memory_bytes() - empty_bytes
                clients.expect(warm_up * each)
                publish(broker_port, commands[:warm_up])
                clients.heard_at()
                cpu, started = server.cpu_seconds(), time.perf_counter()
                clients.expect((warm_up + self.messages) * each)
                publish(broker_port, commands[warm_up:])
                seconds = clients.heard_at() - started
                cpu = server.cpu_seconds() - cpu
        deliveries = self.messages * each
        return {
            "deliveries_per_second": deliveries / seconds,
            "server_cpu_us_per_delivery": cpu / deliveries * 1e6,
            "kib_per_socket": idle_bytes / self.sockets / 1024,
            "handshakes_per_second": self.sockets / clients.joined_seconds,
        }


def publish(port: int, commands: list[bytes]) -> None:
    """Send them in one piece and wait for the broker's replies."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"".join(commands))
        replies = 0
        while replies < len(commands):
            replies += connection.recv(1 << 16).count(b"\n")


SCENARIOS: dict[str, Callable[[Peer, int], Result]] = {
    "fan-out": Broadcasts(sockets=500, rooms=1, messages=400),
    "private": Broadcasts(sockets=1000, rooms=1000, messages=30_000),
    "rooms": Broadcasts(sockets=1000, rooms=100, messages=5000),
    "growth-1k": Broadcasts(sockets=1000, rooms=1000, messages=20_000),
    "growth-2k": Broadcasts(sockets=2000, rooms=2000, messages=20_000),
    "growth-5k": Broadcasts(sockets=5000, rooms=5000, messages=20_000),
    "growth-10k": Broadcasts(sockets=10_000, rooms=10_000, messages=20_000),
    "large": Broadcasts(sockets=100, rooms=1, messages=100, text=json.dumps("x" * 65_534)),
}
