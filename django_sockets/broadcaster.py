"""Broadcaster: broadcast, and receive broadcasts, without a websocket connection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, overload

from .conf import Source, load_config
from .hub.history.pages import HistoryPage
from .redaction import frameless
from .runtime.broadcaster_connection import BroadcasterConnection
from .runtime.channel_api import (
    NOT_GIVEN,
    Channels,
    Since,
    channel_list,
    channel_names,
    is_one,
    uncompressed,
)
from .runtime.sync_calls import running_loop

__all__ = ["Broadcaster"]

Several: TypeAlias = (
    list[str] | list[int] | list[str | int] | tuple[str | int, ...] | set[str] | frozenset[str]
)
"""Several channels."""


class Broadcaster:
    """Publishes from any code: a view, a task, a script, a coroutine. It is cheap to create.

    If the running event loop has a connection of its own (a server with sockets), the broadcaster
    publishes through it. Otherwise it uses the library's background loop, which the whole process
    shares. You may keep a broadcaster as long as the process, also across a fork, and use it from
    any thread. Its subscriptions end with the event loop, or the process, in which they were made;
    it can subscribe again.

    The plain methods may be called from any thread. On a thread without a running event loop they
    wait for the result and raise its error. On a thread that runs a loop, they are scheduled in
    order, and a failure is logged. If a signal handler broadcasts while it interrupts another
    broadcast of its thread, its broadcast is scheduled, too. The `async_` methods are the same
    calls for coroutines.

    A subclass may use any name for its own methods and attributes, except the public names below
    and `_connection`.

    Args:
        config: a URL or a dict; None for Django's setting, the environment, or memory://.
        hosts: a list of `{"address": URL}`, in place of `config`.
        loop: ignored; accepted for compatibility with older code.
    """

    @frameless
    def __init__(
        self,
        config: Source | None = None,
        *,
        hosts: Sequence[Any] | None = None,
        loop: object = None,
    ) -> None:
        loaded = load_config(config if hosts is None else {"hosts": hosts})
        self._connection = BroadcasterConnection(loaded)

    # Broadcasting

    def broadcast(self, channel: Channels, data: Any, *, compress: bool = True) -> None:
        """Send data to all subscribers of one channel, or of several channels.

        Args:
            channel: one channel, or a list, tuple or set of them.
            data: anything with a JSON form, or bytes for a binary frame.
            compress: False sends uncompressed frames; see `BaseSocketServer.broadcast`.

        Raises:
            ChannelError, EncodeError, PayloadTooLarge: nothing was sent.
            PublishError: the message may not have reached the server.
            CallError: the event loop or the server did not finish the call in time.
        """
        if not _publish_now(self, channel, data, compress):
            self._connection.calls.plain(
                lambda: self.async_broadcast(channel, data, **uncompressed(compress))
            )

    async def async_broadcast(self, channel: Channels, data: Any, *, compress: bool = True) -> None:
        """See `broadcast`."""
        await self._connection.broadcast(channel, data, None, compress)

    def broadcast_many(
        self, channels: Iterable[str | int], data: Any, *, compress: bool = True
    ) -> None:
        """`broadcast` to several channels."""
        if running_loop() is None:  # On other threads the error of a wrong list is only logged.
            channels = channel_list(channels)
            own = getattr(self.async_broadcast_many, "__func__", None)
            if own is _ASYNC_BROADCAST_MANY and _publish_now(self, channels, data, compress):
                return
        self._connection.calls.plain(
            lambda: self.async_broadcast_many(channels, data, **uncompressed(compress))
        )

    async def async_broadcast_many(
        self, channels: Iterable[str | int], data: Any, *, compress: bool = True
    ) -> None:
        """See `broadcast_many`."""
        await self.async_broadcast(channel_list(channels), data, **uncompressed(compress))

    # History

    def history(
        self, channel: str | int, since: str | None = None, limit: int = 100
    ) -> HistoryPage:
        """Read kept messages of a channel that has a rule in the setting `history`.

        Args:
            channel: one channel.
            since: a position: read the oldest messages behind it. Default: None, the newest ones.
            limit: the most messages, 1 to 10,000. A page also ends after 16 MiB. Default: 100.

        Returns:
            A page: its `messages`, the oldest first, each with `data`, `position` and `is_text`;
            and its `position`, to read on or to subscribe with `since`. `recovered` is False if
            messages behind `since` are missing.

        Raises:
            ChannelError: the name is not valid, or the channel has no rule.
            PositionError: `since` is not the text of a position.
            ConfigurationError: `limit` is out of range, or the broker has no history.
            HistoryError: the server did not answer, or refused.
            CallError: the event loop did not finish the call in time, or this thread runs an event
                loop: await `async_history` there.
        """
        return self._connection.calls.result(lambda: self.async_history(channel, since, limit))

    async def async_history(
        self, channel: str | int, since: str | None = None, limit: int = 100
    ) -> HistoryPage:
        """See `history`."""
        return await self._connection.history(channel, since, limit)

    @overload
    def position(self, channel: str | int) -> str: ...
    @overload
    def position(self, channel: Several) -> dict[str, str]: ...
    def position(self, channel: str | int | Several) -> str | dict[str, str]:
        """The place behind the newest message of a channel, also before its first message.

        Read it before the state that you send to a client. A subscription with `since=position`
        then gets every change that the state does not have.

        Args:
            channel: one channel, or a list, tuple or set of them, which costs one round trip per
                server.

        Returns:
            The position, a text of letters, digits, `-` and `_`. For several channels, a dict of
            channel -> position.

        Raises:
            ChannelError, ConfigurationError, HistoryError, CallError: see `history`.
        """
        return self._connection.calls.result(lambda: self.async_position(channel))

    @overload
    async def async_position(self, channel: str | int) -> str: ...
    @overload
    async def async_position(self, channel: Several) -> dict[str, str]: ...
    @overload
    async def async_position(self, channel: str | int | Several) -> str | dict[str, str]: ...
    async def async_position(self, channel: str | int | Several) -> str | dict[str, str]:
        """See `position`."""
        names = channel_names(channel)
        found = await self._connection.positions(names)
        return found[names[0]] if is_one(channel) else found

    # Presence

    def presence(self, channel: str | int) -> dict[str, list[Any]]:
        """The members that are present on a channel, on all processes; see docs/presence.md.

        Args:
            channel: one channel.

        Returns:
            Key of the member -> [info of each of its connections]. Do not change the infos: other
            lists and events of this process may contain the same objects.

        Raises:
            ChannelError, ConfigurationError: the name is not valid, or the broker has no presence.
            PresenceError: the server did not answer, or refused.
            CallError: the event loop did not finish the call in time, or this thread runs an event
                loop: await `async_presence` there.
        """
        return self._connection.calls.result(lambda: self.async_presence(channel))

    async def async_presence(self, channel: str | int) -> dict[str, list[Any]]:
        """See `presence`."""
        return await self._connection.presence(channel)

    # Subscribing

    def subscribe(
        self, channel: Channels, *, since: Since = NOT_GIVEN, replay: int | None = None
    ) -> Any:
        """Receive the broadcasts to one or several channels. Returns after the acknowledgement.

        Args:
            since: the position of the last message that is known; for several channels, a dict of
                channel -> position. None stands for no position.
            replay: the number of latest messages to receive, on channels without a position.

        Returns:
            None without `since` and `replay`. With one of them, the `Recovery` of the channel, or,
            for a list of channels, a dict of channel -> `Recovery`.

        Raises:
            ChannelError, SubscribeError, CallError: this call subscribed to no channel.
            PositionError, ConfigurationError, ValueError: `since` or `replay` is wrong.
        """
        calls = self._connection.calls
        if since is NOT_GIVEN and replay is None:
            return calls.plain(lambda: self.async_subscribe(channel))
        return calls.result(lambda: self.async_subscribe(channel, since=since, replay=replay))

    async def async_subscribe(
        self, channel: Channels, *, since: Since = NOT_GIVEN, replay: int | None = None
    ) -> Any:
        """See `subscribe`. Broadcasts are queued for `async_receive_broadcast`."""
        recoveries = await self._connection.subscribe(channel, since, replay)
        return None if since is NOT_GIVEN and replay is None else recoveries

    def unsubscribe(self, channel: Channels) -> None:
        """Stop receiving broadcasts to one or several channels."""
        self._connection.calls.plain(lambda: self.async_unsubscribe(channel))

    async def async_unsubscribe(self, channel: Channels) -> None:
        """See `unsubscribe`."""
        await self._connection.unsubscribe(channel)

    async def async_receive_broadcast(self) -> tuple[str, Any]:
        """Wait for the next broadcast to a subscribed channel. Cancelling loses no broadcast.

        If a gap comes before it, `gap` is called.

        Returns:
            The channel and the decoded data.

        Raises:
            CallError: nothing is subscribed.
        """
        return await self._connection.receive(self.gap)

    def gap(self, channels: Sequence[str], reason: str) -> None:
        """Called where broadcasts on these channels may be missing. Override it to react."""

    async def aclose(self) -> None:
        """Drop all subscriptions; the broadcaster can still publish."""
        await self._connection.aclose()


def _publish_now(broadcaster: Broadcaster, channel: Channels, data: Any, compress: bool) -> bool:
    """See `BroadcasterConnection.publish_now`. False for a subclass with its own methods."""
    own = getattr(broadcaster.async_broadcast, "__func__", None)
    return own is _ASYNC_BROADCAST and broadcaster._connection.publish_now(channel, data, compress)


_ASYNC_BROADCAST = Broadcaster.async_broadcast
_ASYNC_BROADCAST_MANY = Broadcaster.async_broadcast_many
