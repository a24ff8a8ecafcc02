"""Messages at a constant rate, one at a time: latency, and the server's CPU time."""

from __future__ import annotations

import dataclasses
import json
import time

from ..brokers import Broker
from ..client import STAMP, STAMP_DIGITS
from ..environments import Peer
from ..processes import Clients, Server
from ..publisher import Publisher, publisher_for

FILLER = "x" * (200 - len('{"at":"","text":""}') - STAMP_DIGITS)


@dataclasses.dataclass(frozen=True)
class Steady:
    """Messages at a rate of `per_second`, to each room in turn; percentiles over all deliveries.

    Each message is sent alone, after the broker's reply to the one before. If the broker replies
    too late, the rate is lower.

    Attributes:
        sockets, rooms: each room has an equal number of sockets.
    """

    sockets: int
    rooms: int
    per_second: int
    messages: int
    warm_up: int

    def __call__(self, peer: Peer, broker: Broker) -> dict[str, float]:
        with (
            Server(peer, broker) as server,
            publisher_for(peer, broker) as publisher,
            Clients(server.port, self._paths()) as clients,
        ):
            each = self.sockets // self.rooms
            clients.ask(f"count {each * self.warm_up}")
            self._publish(publisher, self.warm_up)
            clients.answer("received")
            cpu = server.cpu_seconds()
            clients.ask(f"time {each * self.messages}")
            seconds = self._publish(publisher, self.messages)
            p50, p99, longest = clients.answer("microseconds")
            cpu = server.cpu_seconds() - cpu
        return {
            "p50_ms": p50 / 1000,
            "p99_ms": p99 / 1000,
            "max_ms": longest / 1000,
            "server_cpu_us_per_delivery": cpu / self.messages / each * 1e6,
            "messages_per_second": self.messages / seconds,
        }

    def _paths(self) -> list[str]:
        return [f"room-{number % self.rooms}" for number in range(self.sockets)]

    def _publish(self, publisher: Publisher, count: int) -> float:
        """Publish messages; returns the seconds that it took."""
        started = due = time.perf_counter()
        for number in range(count):
            due += 1 / self.per_second
            time.sleep(max(0.0, due - time.perf_counter()))
            room = f"room-{number % self.rooms}"
            publisher.send(publisher.prepare([(room, _stamped())]))
        return time.perf_counter() - started


def _stamped() -> str:
    return f'{{{STAMP}{time.perf_counter_ns():0{STAMP_DIGITS}}","text":"{FILLER}"}}'


assert len(json.dumps(json.loads(_stamped()), separators=(",", ":"))) == 200
