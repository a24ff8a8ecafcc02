"""Messages at a constant rate: the latency from the publisher to a client."""

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
class Latency:
    """Messages to one room at a rate of `per_second`; percentiles over all deliveries."""

    sockets: int
    per_second: int
    messages: int
    warm_up: int = 300

    def __call__(self, peer: Peer, broker: Broker) -> dict[str, float]:
        with (
            Server(peer, broker) as server,
            publisher_for(peer, broker) as publisher,
            Clients(server.port, ["room-0"] * self.sockets) as clients,
        ):
            clients.ask(f"count {self.sockets * self.warm_up}")
            self._publish(publisher, self.warm_up)
            clients.answer("received")
            cpu = server.cpu_seconds()
            clients.ask(f"time {self.sockets * self.messages}")
            self._publish(publisher, self.messages)
            p50, p99, longest = clients.answer("microseconds")
            cpu = server.cpu_seconds() - cpu
        return {
            "p50_ms": p50 / 1000,
            "p99_ms": p99 / 1000,
            "max_ms": longest / 1000,
            "server_cpu_us_per_delivery": cpu / self.messages / self.sockets * 1e6,
        }

    def _publish(self, publisher: Publisher, count: int) -> None:
        due = time.perf_counter()
        for _ in range(count):
            due += 1 / self.per_second
            time.sleep(max(0.0, due - time.perf_counter()))
            publisher.send(publisher.prepare([("room-0", _stamped())]))


def _stamped() -> str:
    return f'{{{STAMP}{time.perf_counter_ns():0{STAMP_DIGITS}}","text":"{FILLER}"}}'


assert len(json.dumps(json.loads(_stamped()), separators=(",", ":"))) == 200
