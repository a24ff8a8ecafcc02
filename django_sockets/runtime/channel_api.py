"""Broadcasting and subscribing by channel name, plain and async, for sockets and broadcasters."""

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
        ChannelError: a channel has another type. The hub checks the other rules.
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
    """Base of `BaseSocketServer` and `Broadcaster`, which define where their calls run.

    The plain methods may be called from any thread. On a thread without a running event loop they
    wait for the result and raise its error. On a thread that runs a loop they are scheduled, in
    order, and a failure is logged. The `async_` methods are the same calls for coroutines.
    """

    _config: Config

    @property
    @abc.abstractmethod
    def _calls(self) -> Calls:
        """The calls of this object."""

    def _awaited(self, operation: Operation[T]) -> Awaitable[T]:
        """See `Calls.awaited`."""
        return self._calls.awaited(operation)

    @abc.abstractmethod
    def _add(self, names: list[str]) -> Coroutine[Any, Any, None]:
        """Subscribe; on the home loop."""

    @abc.abstractmethod
    async def _remove(self, names: list[str]) -> None:
        """Unsubscribe; on the home loop."""

    # Broadcasting

    def broadcast(self, channel: Channels, data: Any) -> None:
        """Send data to all subscribers of a channel, or of several channels.

        Args:
            channel: one channel, or a list, tuple or set of them.
            data: anything with a JSON form, or bytes for a binary frame.

        Raises:
            ChannelError, EncodeError, PayloadTooLarge: nothing was sent.
            PublishError: it is not certain that the server received the data.
            CallError: the event loop did not finish the call in time.
        """
        self._calls.plain(lambda: self.async_broadcast(channel, data))

    async def async_broadcast(self, channel: Channels, data: Any) -> None:
        """See `broadcast`."""
        names = channel_names(channel)
        payload, is_text = encode(data)
        # A lambda would keep its cells alive for each of what may be thousands of calls.
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
        """Receive the broadcasts to a channel, or to several; acknowledged by the server on return.

        Raises:
            ChannelError, SubscribeError, CallError: this call has subscribed none of them.
        """
        self._calls.plain(lambda: self.async_subscribe(channel))

    async def async_subscribe(self, channel: Channels) -> None:
        """See `subscribe`."""
        names = channel_names(channel)
        await self._awaited(partial(self._add, names))

    def unsubscribe(self, channel: Channels) -> None:
        """Stop receiving the broadcasts to a channel, or to several."""
        self._calls.plain(lambda: self.async_unsubscribe(channel))

    async def async_unsubscribe(self, channel: Channels) -> None:
        """See `unsubscribe`."""
        names = channel_names(channel)
        await self._awaited(partial(self._remove, names))
