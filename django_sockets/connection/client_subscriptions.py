"""What a socket can do with channels besides a broadcaster: leave itself out, and ask for a client.

Base of `BaseSocketServer`, which says where its calls run.
"""

from __future__ import annotations

import abc
import inspect
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ..broker import check_channel
from ..codec import encode
from ..errors import ChannelError, NotAllowed
from ..runtime.background import publish
from ..runtime.channel_api import ChannelNames, Channels, channel_names
from ..runtime.sync_calls import running_loop

__all__ = ["ClientSubscriptions"]

ORIGIN_BYTES = 8


class ClientSubscriptions(ChannelNames):
    """Broadcasts that leave their sender out, and subscriptions that a client asks for."""

    max_subscriptions: int = 1000
    """Channels of one socket."""

    _origin: bytes | None = None

    @abc.abstractmethod
    def _call(self, handler: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        """Run a hook where it belongs; to be awaited."""

    @abc.abstractmethod
    def _too_many(self, names: Sequence[str]) -> bool:
        """Whether the socket would be on more than `max_subscriptions` channels."""

    # Broadcasting

    def broadcast(self, channel: Channels, data: Any, *, exclude_self: bool = False) -> None:
        """Send data to everybody who is subscribed to a channel, or to several channels.

        Args:
            channel: one channel, or a list, tuple or set of them.
            data: anything with a JSON form, or bytes for a binary frame.
            exclude_self: this socket does not get it; every other one does, wherever it is.

        Raises:
            ChannelError, EncodeError, PayloadTooLarge: nothing was sent.
            PublishError: it did not certainly reach the server.
            CallError: the event loop did not do it in time.
        """
        self._calls.plain(lambda: self.async_broadcast(channel, data, exclude_self=exclude_self))

    async def async_broadcast(
        self, channel: Channels, data: Any, *, exclude_self: bool = False
    ) -> None:
        """See `broadcast`."""
        names = channel_names(channel)
        payload, is_text = encode(data)

        async def operation() -> None:
            origin = self._own_id() if exclude_self else None
            await publish(self._config, names, payload, is_text=is_text, origin=origin)

        await self._awaited(operation)

    def broadcast_many(
        self, channels: Iterable[str | int], data: Any, *, exclude_self: bool = False
    ) -> None:
        """`broadcast` to several channels."""
        self._calls.plain(
            lambda: self.async_broadcast_many(channels, data, exclude_self=exclude_self)
        )

    async def async_broadcast_many(
        self, channels: Iterable[str | int], data: Any, *, exclude_self: bool = False
    ) -> None:
        """See `broadcast_many`."""
        if isinstance(channels, (str, bytes)):
            raise ChannelError(channels, "is one name and no list: use broadcast, or write [...]")
        await self.async_broadcast(list(channels), data, exclude_self=exclude_self)

    def _own_id(self) -> bytes:
        if self._origin is None:
            self._origin = os.urandom(ORIGIN_BYTES)
        return self._origin

    # Subscribing for the client

    def may_subscribe(self, channel: str, /) -> Any:
        """Whether the client may have a channel that it has asked for; `def` or `async def`.

        Nobody may, unless the class overrides it.
        """
        return False

    def subscribe_for_client(self, channels: Channels) -> None:
        """`subscribe` to what the client asked for, if `may_subscribe` allows all of it.

        Args:
            channels: anything that came from the client; a channel, or a list of them.

        Raises:
            NotAllowed: for one of them, it is no channel, or they are too many; nothing was
                subscribed. Left uncaught it goes to `error`, which closes with 1008.
            SubscribeError, CallError: this call has subscribed none of them.
        """
        if running_loop() is not None or inspect.iscoroutinefunction(self.may_subscribe):
            self._calls.plain(lambda: self.async_subscribe_for_client(channels))
            return
        names = self._asked_for(channels)
        for name in names:
            # On this thread: all others may be busy with calls that wait like this one.
            answer = self.may_subscribe(name)
            if inspect.isawaitable(answer):
                answer = self._calls.plain(partial(_result, answer))
            self._demand(answer, name)
        self._calls.plain(lambda: self._add_for_client(names))

    async def async_subscribe_for_client(self, channels: Channels) -> None:
        """See `subscribe_for_client`."""
        names = self._asked_for(channels)

        async def operation() -> None:
            for name in names:
                self._demand(await self._call(self.may_subscribe, name), name)
            await self._add_for_client(names)

        await self._awaited(operation)

    def _demand(self, answer: object, name: str) -> None:
        if answer:
            return
        cls = type(self)
        problem = f"may_subscribe refused channel {name!r}"
        if cls.may_subscribe is ClientSubscriptions.may_subscribe:
            problem = (
                f"{cls.__name__} has no may_subscribe, so every request of a client is refused; "
                f"this one was for channel {name!r}"
            )
        raise NotAllowed(problem, channel=name)

    def _asked_for(self, channels: object) -> list[str]:
        try:
            names = dict.fromkeys(check_channel(name) for name in channel_names(channels))
        except ChannelError as exc:
            raise NotAllowed(str(exc)) from exc
        if len(names) > self.max_subscriptions:
            # Before may_subscribe, which may cost a query each.
            raise NotAllowed(f"{len(names)} channels are more than max_subscriptions")
        return list(names)

    async def _add_for_client(self, names: list[str]) -> None:
        if self._too_many(names):
            raise NotAllowed(f"{len(names)} channels more are over max_subscriptions")
        await self._add(names)


async def _result(answer: Awaitable[Any]) -> Any:
    return await answer
