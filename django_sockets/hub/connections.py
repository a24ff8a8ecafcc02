"""The connections of one hub that a server serves, and sending them away in good order.

It knows no sockets, only `Connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Protocol

__all__ = ["Connection", "Connections"]

logger = logging.getLogger("django_sockets")

CLOSING_SHARE = 0.8
"""Part of the window in which closes begin; the rest is for handlers that are at work."""
SLOWEST_STEP_SECONDS = 0.05
"""Few connections need no whole window: at least 20 a second are closed."""


class Connection(Protocol):
    """A connection that can be told to end."""

    def on_drain(self, patience_seconds: float) -> None:
        """End soon, once the handler at work has returned, or after `patience_seconds`.

        Called on the event loop, and must not wait.
        """


class Connections:
    """Who is there, on one event loop.

    Attributes:
        draining: everybody is being sent away; nobody may come in any more.
    """

    def __init__(self) -> None:
        self._connections: dict[Connection, None] = {}
        self._left = asyncio.Event()
        self.draining = False

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: Connection) -> None:
        self._connections[connection] = None

    def discard(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        if not self._connections:
            self._left.set()

    async def drain(self, seconds: float) -> int:
        """Send everybody away, one after the other, within `seconds`.

        Returns:
            How many are still there: their handlers did not return in time.
        """
        self.draining = True
        loop = asyncio.get_running_loop()
        began = loop.time()
        ends = began + seconds
        connections = list(self._connections)
        step = min(SLOWEST_STEP_SECONDS, seconds * CLOSING_SHARE / max(1, len(connections)))
        for number, connection in enumerate(connections):
            early = began + number * step - loop.time()
            if early > 0:
                await asyncio.sleep(early)
            if connection in self._connections:
                left = ends - loop.time()
                try:
                    connection.on_drain(max(0.0, left - seconds * (1 - CLOSING_SHARE) / 2))
                except Exception:
                    logger.exception("draining: a connection could not be told to end")
        # Also those that were in their handshake when it began.
        while self._connections and loop.time() < ends:
            self._left.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._left.wait(), ends - loop.time())
        return len(self._connections)
