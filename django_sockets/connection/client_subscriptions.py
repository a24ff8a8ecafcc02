"""Subscriptions that a client asks for: the hook `may_subscribe` decides about each channel."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..broker import check_channel
from ..errors import ChannelError, ConfigurationError, NotAllowed, PositionError
from ..runtime.channel_api import (
    NOT_GIVEN,
    Since,
    channel_names,
    is_one,
    positions_by_name,
    watching,
)
from ..runtime.sync_calls import running_loop
from .subscribe_rights import may_subscribe_hook

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["async_subscribe_for_client", "subscribe_for_client"]


def subscribe_for_client(
    connection: Connection,
    channels: object,
    since: Since,
    replay: int | None,
    presence: bool = False,
) -> Any:
    """See `BaseSocketServer.subscribe_for_client`."""
    socket = connection.socket
    plain = since is NOT_GIVEN and replay is None and not presence
    run = connection.calls.plain if plain else connection.calls.result
    if running_loop() is not None or inspect.iscoroutinefunction(socket.may_subscribe):
        if plain:
            return run(lambda: socket.async_subscribe_for_client(channels))
        return run(
            lambda: socket.async_subscribe_for_client(
                channels, since=since, replay=replay, **watching(presence)
            )
        )
    names = _asked_for(connection, channels)
    may_subscribe = may_subscribe_hook(socket, presence)
    for name in names:
        # On this thread, because all others may be busy with calls that wait like this one.
        answer = may_subscribe(name)
        if inspect.isawaitable(answer):
            answer = connection.calls.plain(partial(_result, answer))
        _demand(connection, answer, name)
    return run(lambda: _add(connection, channels, names, since, replay, presence))


async def async_subscribe_for_client(
    connection: Connection,
    channels: object,
    since: Since,
    replay: int | None,
    presence: bool = False,
) -> Any:
    """See `BaseSocketServer.subscribe_for_client`."""
    names = _asked_for(connection, channels)
    may_subscribe = may_subscribe_hook(connection.socket, presence)

    async def operation() -> Any:
        for name in names:
            answer = await connection.call(may_subscribe, name)
            _demand(connection, answer, name)
        return await _add(connection, channels, names, since, replay, presence)

    return await connection.awaited(operation)


def _asked_for(connection: Connection, channels: object) -> list[str]:
    try:
        names = dict.fromkeys(check_channel(name) for name in channel_names(channels))
    except ChannelError as exc:
        raise NotAllowed(str(exc)) from exc
    if len(names) > connection.socket.max_subscriptions:
        # Checked before `may_subscribe` is called, which may make a query for each channel.
        raise NotAllowed(f"{len(names)} channels exceed max_subscriptions")
    return list(names)


def _demand(connection: Connection, answer: object, name: str) -> None:
    if answer:
        return
    cls: type[Any] = type(connection.socket)
    problem = f"may_subscribe refused channel {name!r}"
    if cls.may_subscribe is connection.definition.base.may_subscribe:
        problem = (
            f"{cls.__name__} has no may_subscribe, so every request of a client is refused; "
            f"this one was for channel {name!r}"
        )
    raise NotAllowed(problem, channel=name)


async def _add(
    connection: Connection,
    channels: object,
    names: list[str],
    since: Since,
    replay: int | None,
    presence: bool,
) -> Any:
    if connection.delivery.too_many(names):
        raise NotAllowed(f"{len(names)} more channels would exceed max_subscriptions")
    if since is NOT_GIVEN and replay is None and not presence:
        await connection.add(names)
        return None
    try:
        positions = positions_by_name(names, since)
        recoveries = await connection.add(names, positions, replay or 0, presence)
    except (ChannelError, ConfigurationError, PositionError) as exc:
        raise NotAllowed(str(exc)) from exc
    return recoveries[names[0]] if is_one(channels) else recoveries


async def _result(answer: Awaitable[Any]) -> Any:
    return await answer
