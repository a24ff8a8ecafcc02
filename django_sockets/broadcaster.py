"""Broadcaster: broadcasting, and receiving broadcasts, without a websocket connection."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from .conf import Source, load_config
from .delivery.events import EventQueue, Gap
from .errors import CallError
from .loops import forget_closed
from .redaction import frameless
from .runtime.background import background_loop, existing_hub, shared_hub
from .runtime.channel_api import ChannelNames
from .runtime.sync_calls import Calls, running_loop

__all__ = ["Broadcaster"]


class Broadcaster(ChannelNames):
    """Publishes from anywhere: a view, a task, a script, a coroutine. Making one costs nothing.

    Everything it publishes goes through the running event loop's own connection where there is one
    (a server with sockets), else through the library's background loop, which the whole process
    shares. It may be kept for good, also across a fork, and used from any thread. Its subscriptions
    end with the loop, or the process, in which they were made; it can subscribe again.

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
        self._config = load_config(config if hosts is None else {"hosts": hosts})
        self._home: Calls | None = None
        self._calls_on: dict[asyncio.AbstractEventLoop, Calls] = {}
        self._queue: EventQueue | None = None
        self._pid = os.getpid()

    @property
    def _calls(self) -> Calls:
        self._leave_what_ended()
        if self._home is not None:
            return self._home
        loop = running_loop()
        known = self._calls_on.get(loop) if loop is not None else None
        if known is not None:
            return known
        if loop is None or existing_hub(loop, self._config) is None:
            loop = background_loop()
        return self._calls_of(loop)

    def _leave_what_ended(self) -> None:
        """A fork has left other loops and subscriptions behind, the end of a loop those on it."""
        if self._pid != os.getpid():
            self._pid, self._home, self._queue = os.getpid(), None, None
            self._calls_on.clear()
        elif self._home is not None and self._home.home.is_closed():
            self._home = self._queue = None

    def _calls_of(self, loop: asyncio.AbstractEventLoop) -> Calls:
        calls = self._calls_on.get(loop)
        if calls is None:
            forget_closed(self._calls_on)
            timeout_seconds = self._config.settings.sync_call_timeout_seconds
            # Another thread may have come first.
            calls = self._calls_on.setdefault(loop, Calls(loop, timeout_seconds))
        return calls

    async def async_subscribe(self, channel: Any) -> None:
        """See `subscribe`. What arrives waits for `async_receive_broadcast`."""
        self._leave_what_ended()
        if self._home is None:
            # What is received belongs to the loop that asked for it first.
            self._home = self._calls_of(asyncio.get_running_loop())
        await super().async_subscribe(channel)

    async def _add(self, names: list[str]) -> None:
        hub = shared_hub(self._config)
        if self._queue is None:
            self._queue = hub.new_queue()
        queue = self._queue
        try:
            await hub.add(queue, names)
        except BaseException:
            if queue is self._queue and not hub.channels_of(queue):
                self._queue = self._home = None  # It is subscribed to nothing.
            raise

    async def _remove(self, names: list[str]) -> None:
        if self._queue is not None:
            await shared_hub(self._config).remove(self._queue, names)

    async def async_receive_broadcast(self) -> tuple[str, Any]:
        """The next broadcast to a subscribed channel; waits for it. Cancelling loses none.

        Gaps go to `gap` on the way.

        Returns:
            The channel and the decoded data.

        Raises:
            CallError: nothing is subscribed.
        """
        self._leave_what_ended()
        queue = self._queue
        if queue is None:
            raise CallError("subscribe to a channel before waiting for broadcasts")
        while True:
            event = await self._calls.awaited(queue.next)
            if event is None:
                raise CallError("the connection was closed")
            if not isinstance(event, Gap):
                return event.channel, event.data()
            self.gap(event.channels, event.reason)

    def gap(self, channels: Sequence[str], reason: str) -> None:
        """Override it to hear that broadcasts on these channels may be missing at this point."""

    async def aclose(self) -> None:
        """Drop all subscriptions; the broadcaster can still publish."""
        self._leave_what_ended()
        queue = self._queue
        if queue is not None and self._home is not None:
            self._queue = None
            queue.close()
            await self._home.awaited(lambda: shared_hub(self._config).remove(queue))
            self._home = None
