"""Broadcasting and subscribing by channel name: the common part of sockets and broadcasters."""

from __future__ import annotations

import abc
import enum
from collections.abc import Awaitable, Collection, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

from ..codec import encode
from ..conf import Config
from ..errors import ChannelError, ConfigurationError
from ..history import Recovery
from .background import publish
from .sync_calls import Calls, Operation

__all__ = [
    "NOT_GIVEN",
    "ChannelCalls",
    "Channels",
    "Since",
    "channel_list",
    "channel_name",
    "channel_names",
    "is_one",
    "positions_by_name",
    "uncompressed",
    "watching",
]

T = TypeVar("T")

Channels: TypeAlias = str | int | Iterable[str | int]


class NotGiven(enum.Enum):
    """Marks an argument that was left out, where None has a meaning of its own."""

    NOT_GIVEN = enum.auto()

    def __repr__(self) -> str:
        return self.name


NOT_GIVEN: Literal[NotGiven.NOT_GIVEN] = NotGiven.NOT_GIVEN

Since: TypeAlias = (
    str | Mapping[str, str | None] | Mapping[int, str | None] | Literal[NotGiven.NOT_GIVEN] | None
)
"""A position; or channel -> position for several channels. None: there is no position."""


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


def is_one(channels: object) -> bool:
    """Whether the argument names one channel, and is no list, tuple or set."""
    return not isinstance(channels, (list, tuple, set, frozenset))


def channel_name(channel: object) -> str:
    """The name of one channel; an `int` is its digits.

    Raises:
        ChannelError: it has another type.
    """
    if not is_one(channel):
        raise ChannelError(channel, "is a list: name one channel")
    return channel_names(channel)[0]


def positions_by_name(names: list[str], since: Since) -> str | dict[str, str] | None:
    """The argument `since` with names of channels, as the hub takes it.

    Args:
        names: the channels of the call.

    Raises:
        ConfigurationError: it is one position for several channels.
        ChannelError: a channel has a wrong type.
    """
    if since is NOT_GIVEN or since is None:
        return None
    if isinstance(since, Mapping):
        given = {channel_name(name): position for name, position in since.items()}
        return {name: position for name, position in given.items() if position is not None}
    if len(set(names)) > 1:
        raise ConfigurationError(
            f"since is one position for {len(names)} channels: a position belongs to one channel, "
            "so pass a dict of channel -> position"
        )
    return since


def channel_list(channels: Iterable[str | int]) -> list[str | int]:
    """The argument of `broadcast_many` as a list.

    Raises:
        ChannelError: it is one name.
    """
    if isinstance(channels, (str, bytes)):
        raise ChannelError(channels, "is one name and no list: use broadcast, or write [...]")
    return list(channels)


def uncompressed(compress: bool) -> dict[str, bool]:
    """The argument `compress` for a method that a subclass may override: only if it is False.

    An override that was written before the argument existed need not take it.
    """
    return {} if compress else {"compress": False}


def watching(presence: bool) -> dict[str, bool]:
    """The argument `presence` for a method that a subclass may override: only if it is True."""
    return {"presence": True} if presence else {}


class ChannelCalls(abc.ABC):
    """The calls of one socket or broadcaster; a subclass decides on which loop they run.

    Attributes:
        config: the broker to publish and subscribe with.
    """

    __slots__ = ("config",)

    config: Config

    @property
    @abc.abstractmethod
    def calls(self) -> Calls:
        """The calls of the home loop."""

    def awaited(self, operation: Operation[T]) -> Awaitable[T]:
        """See `Calls.awaited`."""
        return self.calls.awaited(operation)

    @abc.abstractmethod
    def add(
        self,
        names: list[str],
        since: str | Mapping[str, str] | None = None,
        replay: int = 0,
        presence: bool | Collection[str] = False,
    ) -> Coroutine[Any, Any, dict[str, Recovery]]:
        """Subscribe. Called on the home loop. See `Hub.add`."""

    @abc.abstractmethod
    async def remove(self, names: list[str]) -> None:
        """Unsubscribe. Called on the home loop."""

    # These are no coroutines themselves: a thousand concurrent calls would need a thousand more.

    def broadcast(
        self, channel: Channels, data: Any, origin: bytes | None = None, compress: bool = True
    ) -> Awaitable[None]:
        """Publish data to one or several channels. Await the result.

        Args:
            origin: id of a socket that must not get the data.
            compress: False: the frames are not compressed.
        """
        names = channel_names(channel)
        payload, is_text = encode(data)
        # A lambda would use more memory in each of thousands of concurrent calls.
        return self.awaited(partial(self.publish, names, payload, is_text, origin, compress))

    def publish(
        self,
        names: list[str],
        payload: bytes,
        is_text: bool,
        origin: bytes | None,
        compress: bool,
    ) -> Coroutine[Any, Any, None]:
        """On the home loop: publish; await what it returns."""
        return publish(
            self.config, names, payload, is_text=is_text, origin=origin, compress=compress
        )

    def subscribe(
        self,
        channel: Channels,
        since: Since = NOT_GIVEN,
        replay: int | None = None,
        presence: bool = False,
    ) -> Awaitable[Any]:
        """Subscribe to one or several channels. Await the result.

        Returns:
            For one channel, its `Recovery`; for several, a dict of channel -> `Recovery`.
        """
        names = channel_names(channel)
        if since is NOT_GIVEN and replay is None and not presence:  # Without a coroutine more.
            return self.awaited(partial(self.add, names))
        positions = positions_by_name(names, since)
        return self.awaited(
            partial(self._subscribe_at, names, is_one(channel), positions, replay or 0, presence)
        )

    async def _subscribe_at(
        self,
        names: list[str],
        one: bool,
        since: str | Mapping[str, str] | None,
        replay: int,
        presence: bool,
    ) -> Recovery | dict[str, Recovery]:
        recoveries = await self.add(names, since, replay, presence)
        return recoveries[names[0]] if one else recoveries

    def unsubscribe(self, channel: Channels) -> Awaitable[None]:
        """Unsubscribe from one or several channels. Await the result."""
        return self.awaited(partial(self.remove, channel_names(channel)))
