"""The connections of clients that use one hub, and draining them before a shutdown.

They are websockets and streams of server-sent events.

The module does not import the socket classes. It uses the protocol `Connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from ..deadlines import with_deadline

__all__ = ["Connection", "Connections", "Unsent"]

logger = logging.getLogger("django_sockets")

CLOSING_SHARE = 0.8
"""The part of the drain time in which the closes begin. Running handlers have the rest."""
SLOWEST_STEP_SECONDS = 0.05
"""The longest time between two closes, so that few connections do not need the whole time."""


class Unsent(Protocol):
    """The messages and other items that wait for one client. For any thread."""

    @property
    def items(self) -> int:
        """Their number."""

    @property
    def size_bytes(self) -> int:
        """Their size."""

    @property
    def slow(self) -> bool:
        """The client was found to read too slowly and has not caught up, or messages are dropped.

        They are also dropped if a hook of the application takes too long.
        """


class Connection(Protocol):
    """A connection that can be drained."""

    @property
    def takes_frames(self) -> bool:
        """Its server takes prepared frames for it."""

    @property
    def wrapped_send(self) -> str | None:
        """The name of the callable that keeps it from taking prepared frames; None without one."""

    @property
    def unsent(self) -> Unsent | None:
        """The messages that wait for its client; None if none has ever waited. For any thread."""

    @property
    def class_name(self) -> str:
        """The name of its socket class. For any thread."""

    @property
    def user(self) -> str | None:
        """Its tag "user"; None without one. For any thread."""

    def on_drain(self, patience_seconds: float) -> None:
        """Close after the running handler has returned, at the latest after `patience_seconds`.

        Called on the event loop; it must not wait.
        """


class Connections:
    """The open connections of one hub, on one event loop.

    Args:
        on_change: called when the first connection has come, and when the last one has gone.

    Attributes:
        draining: `drain` was called; new connections must be refused.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._connections: dict[Connection, bool] = {}  # The value: it is a stream of events.
        self._on_change = on_change
        self._empty = asyncio.Event()
        self.draining = False

    def __len__(self) -> int:
        return len(self._connections)

    def copy(self) -> dict[Connection, bool]:
        """The open connections, and whether each is a stream of events. For any thread."""
        # This is one step, also if another thread adds a connection meanwhile. Building pairs is
        # not, because the garbage collector may run other code in between.
        return self._connections.copy()

    def stats(self) -> dict[str, int]:
        """The present numbers of sockets and of their waiting messages. For any thread."""
        connections = self.copy()
        sockets = [one for one, is_stream in connections.items() if not is_stream]
        unsent = [queue for one in connections if (queue := one.unsent) is not None]
        wrapped = Counter(name for one in sockets if (name := one.wrapped_send) is not None)
        return {
            "sockets": len(sockets),
            "sockets_with_frames": sum(one.takes_frames for one in sockets),
            "event_streams": len(connections) - len(sockets),
            "queued_messages": sum(queue.items for queue in unsent),
            "queued_bytes": sum(queue.size_bytes for queue in unsent),
            "slow_clients": sum(queue.slow for queue in unsent),
            **{f"wrapped_send {name}": count for name, count in wrapped.items()},
        }

    def add(self, connection: Connection, *, is_stream: bool = False) -> None:
        """Add a connection.

        Args:
            is_stream: it is a stream of server-sent events, and no websocket.
        """
        self._connections[connection] = is_stream
        if len(self._connections) == 1:
            self._on_change()

    def discard(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        if not self._connections:
            self._empty.set()
            self._on_change()

    async def drain(self, seconds: float) -> int:
        """Close all connections, one after the other, within `seconds`.

        Returns:
            The number of connections that are still open because a handler did not return in time.
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
                    logger.exception("draining: closing a connection failed")
        # This includes connections that were in their handshake when the draining began.
        while self._connections and loop.time() < ends:
            self._empty.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await with_deadline(ends - loop.time(), self._empty.wait())
        return len(self._connections)
