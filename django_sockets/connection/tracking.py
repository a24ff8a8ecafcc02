"""The channels on which one connection is present: `track`, `untrack`, and the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["track", "untrack"]


async def track(
    connection: Connection, channel: str | int, info: Any, key: str | int | None
) -> None:
    """See `BaseSocketServer.track`."""
    raise NotImplementedError("presence: to be done")


async def untrack(connection: Connection, channel: str | int) -> None:
    """See `BaseSocketServer.untrack`."""
    raise NotImplementedError("presence: to be done")
