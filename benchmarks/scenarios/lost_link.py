"""The time until messages flow again after the broker has closed every subscription."""

from __future__ import annotations

import dataclasses
import time

from ..brokers import Broker
from ..environments import Peer
from ..processes import Clients, Server
from ..publisher import publisher_for
from ..results import Failed
from .broadcasts import TEXT

POLL_SECONDS = 0.01


@dataclasses.dataclass(frozen=True)
class LostLink:
    """Seconds until every socket has received a message; each socket has a room of its own."""

    sockets: int
    give_up_seconds: float

    def __call__(self, peer: Peer, broker: Broker) -> dict[str, float]:
        rooms = [f"room-{number}" for number in range(self.sockets)]
        with (
            Server(peer, broker) as server,
            publisher_for(peer, broker) as publisher,
            Clients(server.port, rooms) as clients,
        ):
            clients.ask(f"count {self.sockets}")
            publisher.send(publisher.prepare((room, TEXT) for room in rooms))
            clients.answer("received")
            cut = time.perf_counter()
            lost = broker.kill_subscribers()
            clients.ask(f"each {self.give_up_seconds}")
            # The reply to a publish has the number of receivers: rooms without one get another.
            silent = rooms
            while silent and time.perf_counter() < cut + self.give_up_seconds:
                receivers = publisher.send(publisher.prepare((room, TEXT) for room in silent))
                silent = [room for room, count in zip(silent, receivers, strict=True) if not count]
                time.sleep(POLL_SECONDS)
            count, at = clients.answer("silent")
        if count:
            raise Failed(
                f"never within {self.give_up_seconds:.0f} s: {count:.0f} of {self.sockets} sockets"
            )
        return {"seconds_until_all_hear": at - cut, "links_cut": lost}
