"""Broadcasting and subscribing by name, plain and async: what sockets and broadcasters share."""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeAlias, TypeVar

from ..codec import encode
from ..conf import Config
from ..errors import ChannelError
from .background import publish
from .sync_calls import Calls, Operation

__all__ = ["ChannelNames", "Channels", "channel_names"]

T = TypeVar("T")

Channels: TypeAlias = str | int | Iterable[str | int]


def channel_names(channels: object) -> list[str]:
    """The names in one channel, or in a list, tuple or set of them; an `int` is its digits.

    Raises:
        ChannelError: another type; the rest of the rules is checked by the hub.
    """
    if isinstance(channels, str):
        return [channels]
    names = []
    for channel in channels if isinstance(channels, (list, tuple, set, frozenset)) else [channels]:
        if isinstance(channel, str):
            names.append(channel)
        elif isinstance(channel, int) and not isinstance(channel, bool):
            names.append(str(channel))
        else:
            raise ChannelError(channel, f"is {type(channel).__name__}: use str or int, or str(...)")
    return names


class ChannelNames(abc.ABC):
    """Base of `BaseSocketServer` and `Broadcaster`; they say where their calls run.

    The plain methods may be called from any thread. On a thread without a running event loop they
    wait for the result and raise its error; on one that runs a loop they are scheduled, in order,
    and log a failure. The `async_` ones are the same calls for coroutines.
    """

    _config: Config

    @property
    @abc.abstractmethod
    def _calls(self) -> Calls:
        """Where the calls run."""

    def _awaited(self, operation: Operation[T]) -> Awaitable[T]:
        """See `Calls.awaited`."""
        return self._calls.awaited(operation)

    @abc.abstractmethod
    def _add(self, names: list[str]) -> Coroutine[Any, Any, None]:
        """On the home loop: subscribe."""

    @abc.abstractmethod
    async def _remove(self, names: list[str]) -> None:
        """On the home loop: unsubscribe."""

    # Broadcasting

    def broadcast(self, channel: Channels, data: Any) -> None:
        """Send data to everybody who is subscribed to a channel, or to several channels.

        Args:
            channel: one channel, or a list, tuple or set of them.
            data: anything with a JSON form, or bytes for a binary frame.

        Raises:
            ChannelError, EncodeError, PayloadTooLarge: nothing was sent.
            PublishError: it did not certainly reach the server.
            CallError: the event loop did not do it in time.
        """
        self._calls.plain(lambda: self.async_broadcast(channel, data))

    async def async_broadcast(self, channel: Channels, data: Any) -> None:
        """See `broadcast`."""
        names = channel_names(channel)
        payload, is_text = encode(data)
        # No lambda: its cells would stay, for each of thousands of calls at once.
        await self._awaited(partial(publish, self._config, names, payload, is_text=is_text))

    def broadcast_many(self, channels: Iterable[str | int], data: Any) -> None:
        """`broadcast` to several channels."""
        self._calls.plain(lambda: self.async_broadcast_many(channels, data))

    async def async_broadcast_many(self, channels: Iterable[str | int], data: Any) -> None:
        """See `broadcast_many`."""
        if isinstance(channels, (str, bytes)):
            raise ChannelError(channels, "is one name and no list: use broadcast, or write [...]")
        await self.async_broadcast(list(channels), data)

    # Subscribing

    def subscribe(self, channel: Channels) -> None:
        """Receive what is broadcast to a channel, or to several; acknowledged on return.

        Raises:
            ChannelError, SubscribeError, CallError: this call has subscribed none of them.
        """
        self._calls.plain(lambda: self.async_subscribe(channel))

    async def async_subscribe(self, channel: Channels) -> None:
        """See `subscribe`."""
        names = channel_names(channel)
        await self._awaited(partial(self._add, names))

    def unsubscribe(self, channel: Channels) -> None:
        """Receive nothing more from a channel, or from several."""
        self._calls.plain(lambda: self.async_unsubscribe(channel))

    async def async_unsubscribe(self, channel: Channels) -> None:
        """See `unsubscribe`."""
        names = channel_names(channel)
        await self._awaited(partial(self._remove, names))
