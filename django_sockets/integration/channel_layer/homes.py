"""The endpoints of one layer: which event loop a call runs on.

An event loop that receives gets an endpoint, on its own hub. A loop that `async_to_sync` made for
one call gets none: its calls run on the library's background loop, and so do the calls of every
loop that only sends.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asgiref.sync import AsyncToSync, SyncToAsync

from ...conf import Config
from ...hub.hub import Hub
from ...loops import forget_closed
from ...runtime import (
    BackgroundLoop,
    at_exit,
    background_loop,
    existing_hub,
    not_at_exit,
    shared_hub,
)
from .counters import LayerCounters
from .endpoint import Endpoint
from .loop_end import end, end_soon, end_with_loop, opened
from .options import LayerOptions

__all__ = ["Homes", "has_main_loop"]

T = TypeVar("T")


class Homes:
    """The endpoints of one layer in one process."""

    def __init__(self, options: LayerOptions, counters: LayerCounters) -> None:
        self._options = options
        self._counters = counters
        self._by_loop: dict[asyncio.AbstractEventLoop, Endpoint] = {}
        self._pid = os.getpid()

    async def receiving(self) -> Endpoint:
        """The endpoint for channels that are received on the running loop."""
        return await self._find(may_open=True)

    async def sending(self) -> Endpoint:
        """The endpoint for the orders and groups of the running loop."""
        return await self._find(may_open=False)

    async def _find(self, *, may_open: bool) -> Endpoint:
        loop = asyncio.get_running_loop()
        config = self._options.config()
        known = self._known(loop, config)
        if known is not None:
            return known
        background = background_loop() if not may_open or _is_short(loop) else None
        if background is None or background is loop or existing_hub(loop, config) is not None:
            return await self._open(config)
        known = self._known(background, config)
        if known is None:
            known = await _on(background, lambda: self._open(config))
        return known

    def _known(self, loop: asyncio.AbstractEventLoop, config: Config) -> Endpoint | None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._by_loop = {}
        endpoint = self._by_loop.get(loop)
        if endpoint is None or not endpoint.usable or endpoint.hub.config != config:
            return None
        return endpoint

    async def _open(self, config: Config) -> Endpoint:
        """Make the endpoint of the running loop."""
        loop = asyncio.get_running_loop()
        known = self._known(loop, config)
        if known is not None:
            return known
        forget_closed(self._by_loop)
        hub = existing_hub(loop, config)
        if hub is None:
            hub = shared_hub(config)
            if not isinstance(loop, BackgroundLoop):
                opened(hub)
        endpoint = self._by_loop[loop] = Endpoint(self._options, self._counters, hub)
        if isinstance(loop, BackgroundLoop):
            at_exit(endpoint.aclose)
        else:
            await end_with_loop(endpoint)
        return endpoint

    async def through_hub(self, operation: Callable[[Hub], Awaitable[T]]) -> T:
        """Await `operation` with the hub of the running loop, else with that of the background."""
        config = self._options.config()
        loop = asyncio.get_running_loop()
        hub = existing_hub(loop, config)
        if hub is not None:
            return await operation(hub)
        background = background_loop()
        return await _on(background, lambda: operation(shared_hub(config)))

    async def close(self) -> None:
        """Close the endpoint of the running loop, and its hub if this layer has opened it."""
        endpoint = self._by_loop.pop(asyncio.get_running_loop(), None)
        if endpoint is not None:
            await end(endpoint)
            not_at_exit(endpoint.aclose)

    def close_soon(self) -> None:
        """Close all endpoints, each on its event loop; called when the layer is gone."""
        if self._pid == os.getpid():
            for endpoint in list(self._by_loop.values()):
                end_soon(endpoint)

    def here(self, loop: asyncio.AbstractEventLoop | None) -> Endpoint | None:
        """The endpoint of an event loop, if it has one that can be used; without checking more."""
        endpoint = self._by_loop.get(loop) if loop is not None else None
        return None if endpoint is None or endpoint.closed else endpoint

    def stats(self) -> dict[str, int]:
        """The counters, and the present numbers of event loops, channels and groups."""
        endpoints = list(self._by_loop.values())
        counts = self._counters.as_dict()
        for endpoint in endpoints:
            for name, count in endpoint.counters.as_dict().items():
                counts[name] += count
        open_ones = [endpoint for endpoint in endpoints if endpoint.usable]
        return {
            **counts,
            "loops": len(open_ones),
            "channels": sum(len(endpoint.boxes) for endpoint in open_ones),
            "groups": sum(len(endpoint.groups) for endpoint in open_ones),
        }


def _is_short(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether `async_to_sync` has made the loop for one call."""
    return loop in AsyncToSync.loop_thread_executors


def has_main_loop() -> bool:
    """Whether `async_to_sync` on this thread uses an event loop that runs already."""
    return getattr(SyncToAsync.threadlocal, "main_event_loop", None) is not None


async def _on(loop: asyncio.AbstractEventLoop, make: Callable[[], Awaitable[T]]) -> T:
    """Await `make()` on another loop of this process, or on this one."""
    if asyncio.get_running_loop() is loop:
        return await make()

    async def run() -> T:
        return await make()

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), loop))
