"""The internal part of a `Broadcaster`: the event loop of its calls, and its subscriptions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from ..codec import encode
from ..conf import Config
from ..delivery.events import EventQueue, Gap
from ..delivery.message import Delivery
from ..errors import CallError
from ..forks import abandon_in_child
from ..history import Recovery
from ..hub.history.pages import HistoryPage
from ..loops import forget_closed
from .background import background_loop, through_hub
from .channel_api import (
    NOT_GIVEN,
    ChannelCalls,
    Channels,
    Since,
    channel_name,
    channel_names,
)
from .shared_hubs import existing_hub, shared_hub
from .sync_calls import Calls, running_loop
from .thread_publishing import can_publish_on_thread, publish_on_thread

__all__ = ["BroadcasterConnection"]


class BroadcasterConnection(ChannelCalls):
    """Publishes on the running loop if that has a hub already, else on the background loop.

    Its subscriptions belong to the loop that made the first one. They end with that loop, or with
    the process in which they were made.
    """

    __slots__ = ("__weakref__", "_calls_on", "_home", "_queue")

    def __init__(self, config: Config) -> None:
        self.config = config
        self._home: Calls | None = None
        self._calls_on: dict[asyncio.AbstractEventLoop, Calls] = {}
        self._queue: EventQueue | None = None
        abandon_in_child(self)

    @property
    def calls(self) -> Calls:
        self._forget_ended()
        if self._home is not None:
            return self._home
        loop = running_loop()
        known = self._calls_on.get(loop) if loop is not None else None
        if known is not None:
            return known
        if loop is None or existing_hub(loop, self.config) is None:
            loop = background_loop()
        return self._calls_of(loop)

    def publish_now(self, channel: Channels, data: Any, compress: bool = True) -> bool:
        """Publish on the calling thread and wait for the server, if the broker can do that.

        Returns:
            False if `calls.plain` must do it: the thread runs an event loop, calls of before are
            still to come, or the broker cannot. Nothing was sent then.

        Raises:
            ChannelError, EncodeError, PayloadTooLarge, PublishError, CallError: see
                `Broadcaster.broadcast`.
        """
        if running_loop() is not None:
            return False
        calls = self.calls
        if not can_publish_on_thread(self.config, calls):
            return False
        names = channel_names(channel)
        payload, is_text = encode(data)
        return publish_on_thread(
            self.config, calls, names, payload, is_text=is_text, compress=compress
        )

    def _forget_ended(self) -> None:
        """Forget a subscription whose loop has ended."""
        if self._home is not None and self._home.home.is_closed():
            self._home = self._queue = None

    def abandon(self) -> None:
        """Forget the loops of the parent in a forked child."""
        self._home = self._queue = None
        self._calls_on.clear()

    def _calls_of(self, loop: asyncio.AbstractEventLoop) -> Calls:
        calls = self._calls_on.get(loop)
        if calls is None:
            forget_closed(self._calls_on)
            timeout_seconds = self.config.settings.sync_call_timeout_seconds
            # Another thread may have made one.
            calls = self._calls_on.setdefault(loop, Calls(loop, timeout_seconds))
        return calls

    def subscribe(
        self,
        channel: Channels,
        since: Since = NOT_GIVEN,
        replay: int | None = None,
        presence: bool = False,
    ) -> Awaitable[Any]:
        self._forget_ended()
        if self._home is None:
            # The subscriptions belong to the loop of the first call.
            self._home = self._calls_of(asyncio.get_running_loop())
        return super().subscribe(channel, since, replay, presence)

    def history(self, channel: str | int, since: str | None, limit: int) -> Awaitable[HistoryPage]:
        """See `Broadcaster.history`. Await the result."""
        name = channel_name(channel)
        return self.awaited(
            lambda: through_hub(self.config, lambda hub: hub.history(name, since, limit))
        )

    def positions(self, names: list[str]) -> Awaitable[dict[str, str]]:
        """See `Broadcaster.position`. Await the result."""
        return self.awaited(lambda: through_hub(self.config, lambda hub: hub.position(names)))

    def presence(self, channel: str | int) -> Awaitable[dict[str, list[Any]]]:
        """See `Broadcaster.presence`. Await the result."""
        name = channel_name(channel)
        return self.awaited(lambda: through_hub(self.config, lambda hub: hub.presence(name)))

    async def add(
        self,
        names: list[str],
        since: str | Mapping[str, str] | None = None,
        replay: int = 0,
        presence: bool | Collection[str] = False,
    ) -> dict[str, Recovery]:
        hub = shared_hub(self.config)
        if self._queue is None:
            self._queue = hub.new_queue()
        queue = self._queue
        try:
            return await hub.add(queue, names, since=since, replay=replay, presence=presence)
        except BaseException:
            if queue is self._queue and not hub.channels_of(queue):
                self._queue = self._home = None  # It is subscribed to nothing.
            raise

    async def remove(self, names: list[str]) -> None:
        if self._queue is not None:
            await shared_hub(self.config).remove(self._queue, names)

    async def receive(self, on_gap: Callable[[Sequence[str], str], object]) -> tuple[str, Any]:
        """Wait for the next broadcast, and return its channel and data.

        Args:
            on_gap: called with channels and a reason for each gap on the way.

        Raises:
            CallError: nothing is subscribed, or the broadcaster was closed.
        """
        self._forget_ended()
        queue = self._queue
        if queue is None:
            raise CallError("subscribe to a channel before waiting for broadcasts")
        while True:
            event = await self.calls.awaited(queue.next)
            if event is None:
                raise CallError("the connection was closed")
            if isinstance(event, Gap):
                on_gap(event.channels, event.reason)
            elif isinstance(event, Delivery):
                return event.channel, event.data()

    async def aclose(self) -> None:
        """Drop all subscriptions. Publishing continues to work."""
        self._forget_ended()
        queue = self._queue
        if queue is not None and self._home is not None:
            self._queue = None
            queue.close()
            await self._home.awaited(lambda: shared_hub(self.config).remove(queue))
            self._home = None
