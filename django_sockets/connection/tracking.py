"""The channels on which one connection is present: `track`, `untrack`, and the end."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, PresenceError
from ..hub.control import tag_texts
from ..runtime.channel_api import channel_name

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["end_tracking", "track", "untrack"]


async def track(
    connection: Connection, channel: str | int, info: Any, key: str | int | None
) -> None:
    """See `BaseSocketServer.track`."""
    name, member = channel_name(channel), _key(connection, key)
    await connection.awaited(partial(_track, connection, name, info, member))


async def _track(connection: Connection, name: str, info: Any, key: str) -> None:
    if _has_ended(connection):
        return
    hub, tracked = connection.shared_hub(), connection.tracked
    if tracked is None:
        tracked = connection.tracked = set()
    is_new = name not in tracked
    if is_new:
        limit = connection.socket.max_subscriptions
        if len(tracked) >= limit:
            problem = f"a socket may be present on {limit} channels (max_subscriptions)"
            raise PresenceError(connection.config.url, problem, channels=[name])
        tracked.add(name)
    entry = _entry(connection)
    try:
        await hub.track(name, key, info, entry=entry)
    except BaseException:
        if is_new:
            tracked.discard(name)
        raise
    if _has_ended(connection):
        hub.release(entry, [name])
    elif name not in tracked:  # `untrack` was called meanwhile.
        await hub.untrack(name, entry)


async def untrack(connection: Connection, channel: str | int) -> None:
    """See `BaseSocketServer.untrack`."""
    await connection.awaited(partial(_untrack, connection, channel_name(channel)))


async def _untrack(connection: Connection, name: str) -> None:
    tracked, hub = connection.tracked, connection.hub
    if tracked and hub is not None and name in tracked:
        tracked.discard(name)
        await hub.untrack(name, _entry(connection))


def end_tracking(connection: Connection) -> None:
    """The connection has ended: its member leaves after the grace, unless its key returns."""
    if connection.tracked and connection.hub is not None:
        connection.hub.release(_entry(connection), connection.tracked)


def _has_ended(connection: Connection) -> bool:
    return not connection.is_alive


def _entry(connection: Connection) -> str:
    return connection.own_id().hex()


def _key(connection: Connection, key: object) -> str:
    if key is None:
        user = tag_texts(connection.tags).get("user") if connection.has_tags else None
        return user or _entry(connection)
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    if not isinstance(key, str):
        kind = type(key).__name__
        raise ConfigurationError(f"presence key is {kind}: use str or int, or str(...)")
    return key
