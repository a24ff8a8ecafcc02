"""What the tests' own links have in common."""

from __future__ import annotations

from django_sockets.backends.client.connection import consume_by_reading
from django_sockets.backends.client.identity import Identity
from django_sockets.backends.client.parser import Consumer


class StandIn:
    """The facts of a link on which nothing unusual happens."""

    identity = Identity()
    protocol = 3
    tls = None
    received_bytes = partial_bytes = 0
    held_seconds = 0.0
    held_since: float | None = None

    async def consume(self, consumer: Consumer) -> None:
        await consume_by_reading(self, consumer)  # type: ignore[arg-type]
