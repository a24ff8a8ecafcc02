"""Subscriptions that a client asks for: the hook `may_subscribe` decides about each channel."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..broker import check_channel
from ..errors import ChannelError, NotAllowed
from ..runtime.channel_api import channel_names
from ..runtime.sync_calls import running_loop

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["async_subscribe_for_client", "subscribe_for_client"]


def subscribe_for_client(connection: Connection, channels: object) -> None:
    """See `BaseSocketServer.subscribe_for_client`."""
    socket = connection.socket
    if running_loop() is not None or inspect.iscoroutinefunction(socket.may_subscribe):
        connection.calls.plain(lambda: socket.async_subscribe_for_client(channels))
        return
    names = _asked_for(connection, channels)
    for name in names:
        # On this thread, because all others may be busy with calls that wait like this one.
        answer = socket.may_subscribe(name)
        if inspect.isawaitable(answer):
            answer = connection.calls.plain(partial(_result, answer))
        _demand(connection, answer, name)
    connection.calls.plain(lambda: _add(connection, names))


async def async_subscribe_for_client(connection: Connection, channels: object) -> None:
    """See `BaseSocketServer.subscribe_for_client`."""
    names = _asked_for(connection, channels)

    async def operation() -> None:
        for name in names:
            answer = await connection.call(connection.socket.may_subscribe, name)
            _demand(connection, answer, name)
        await _add(connection, names)

    await connection.awaited(operation)


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


async def _add(connection: Connection, names: list[str]) -> None:
    if connection.delivery.too_many(names):
        raise NotAllowed(f"{len(names)} more channels would exceed max_subscriptions")
    await connection.add(names)


async def _result(answer: Awaitable[Any]) -> Any:
    return await answer
