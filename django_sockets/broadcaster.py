"""Broadcaster: broadcasting, and receiving broadcasts, without a websocket connection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .conf import Source, load_config
from .redaction import frameless
from .runtime.broadcaster_connection import BroadcasterConnection
from .runtime.channel_api import Channels, channel_list, uncompressed
from .runtime.sync_calls import running_loop

__all__ = ["Broadcaster"]


class Broadcaster:
    """Publishes from anywhere: a view, a task, a script, a coroutine. Making one costs nothing.

    Everything it publishes goes through the running event loop's own connection where there is one
    (a server with sockets), else through the library's background loop, which the whole process
    shares. It may be kept for good, also across a fork, and used from any thread. Its subscriptions
    end with the loop, or the process, in which they were made; it can subscribe again.

    The plain methods may be called from any thread. On a thread without a running event loop they
    wait for the result and raise its error; on one that runs a loop they are scheduled, in order,
    and log a failure. A broadcast of a signal handler that interrupts another broadcast of its
    thread is scheduled, too. The `async_` ones are the same calls for coroutines.

    A subclass may name its own methods and attributes as it likes: the public names below and
    `_connection` are the only ones in use.

    Args:
        config: a URL or a dict; None for Django's setting, the environment, or memory://.
        hosts: a list of `{"address": URL}`, in place of `config`.
        loop: accepted for the sake of older code, and not used.
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
            compress: False: the frames are not compressed; see `BaseSocketServer.broadcast`.

        Raises:
            ChannelError, EncodeError, PayloadTooLarge: nothing was sent.
            PublishError: it did not certainly reach the server.
            CallError: the event loop or the server did not do it in time.
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

    # Subscribing

    def subscribe(self, channel: Channels) -> None:
        """Receive what is broadcast to a channel, or to several; acknowledged on return.

        Raises:
            ChannelError, SubscribeError, CallError: this call has subscribed none of them.
        """
        self._connection.calls.plain(lambda: self.async_subscribe(channel))

    async def async_subscribe(self, channel: Channels) -> None:
        """See `subscribe`. What arrives waits for `async_receive_broadcast`."""
        await self._connection.subscribe(channel)

    def unsubscribe(self, channel: Channels) -> None:
        """Receive nothing more from a channel, or from several."""
        self._connection.calls.plain(lambda: self.async_unsubscribe(channel))

    async def async_unsubscribe(self, channel: Channels) -> None:
        """See `unsubscribe`."""
        await self._connection.unsubscribe(channel)

    async def async_receive_broadcast(self) -> tuple[str, Any]:
        """The next broadcast to a subscribed channel; waits for it. Cancelling loses none.

        Gaps go to `gap` on the way.

        Returns:
            The channel and the decoded data.

        Raises:
            CallError: nothing is subscribed.
        """
        return await self._connection.receive(self.gap)

    def gap(self, channels: Sequence[str], reason: str) -> None:
        """Override it to hear that broadcasts on these channels may be missing at this point."""

    async def aclose(self) -> None:
        """Drop all subscriptions; the broadcaster can still publish."""
        await self._connection.aclose()


def _publish_now(broadcaster: Broadcaster, channel: Channels, data: Any, compress: bool) -> bool:
    """See `BroadcasterConnection.publish_now`. False for a subclass with its own methods."""
    own = getattr(broadcaster.async_broadcast, "__func__", None)
    return own is _ASYNC_BROADCAST and broadcaster._connection.publish_now(channel, data, compress)


_ASYNC_BROADCAST = Broadcaster.async_broadcast
_ASYNC_BROADCAST_MANY = Broadcaster.async_broadcast_many
