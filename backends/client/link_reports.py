"""Reports the losses of one connection, and how long it was missing, to observers."""

from __future__ import annotations

import time

from ...observer import ConnectFailed, LinkLost, LinkRestored, seam

__all__ = ["PUBLISHING", "SUBSCRIBING", "LinkReports"]

PUBLISHING, SUBSCRIBING = "publishing", "subscribing"


class LinkReports:
    """The reports of one connection that is opened again after a loss.

    Args:
        broker: the scheme of the broker's URL.
        link: `PUBLISHING` or `SUBSCRIBING`.
    """

    __slots__ = ("_broker", "_link", "_lost_at")

    def __init__(self, broker: str, link: str) -> None:
        self._broker = broker
        self._link = link
        self._lost_at: float | None = None

    def lost(self, reason: str) -> None:
        """A working connection was lost."""
        self._lost_at = time.perf_counter()
        if (observer := seam.observer) is not None:
            observer.link_lost(LinkLost(broker=self._broker, link=self._link, reason=reason))

    def failed(self) -> None:
        """A connection could not be made."""
        if (observer := seam.observer) is not None:
            observer.connect_failed(ConnectFailed(broker=self._broker, link=self._link))

    def connected(self) -> None:
        """A connection works."""
        if self._lost_at is None:
            return
        seconds, self._lost_at = time.perf_counter() - self._lost_at, None
        if (observer := seam.observer) is not None:
            observer.link_restored(
                LinkRestored(broker=self._broker, link=self._link, seconds=seconds)
            )
