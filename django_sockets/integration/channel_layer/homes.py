"""The endpoints of one layer: which event loop a call runs on.

An event loop that receives gets an endpoint, on its own hub. A loop that `async_to_sync` made for
one call gets none: its calls run on the library's background loop, and so do the calls of every
loop that only sends.

An endpoint ends with its event loop: an asynchronous generator is closed by
`loop.shutdown_asyncgens()`, which `asyncio.run`, `async_to_sync` and uvicorn call. If a loop is
closed without that, its `close` does it, which is wrapped for this.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

from asgiref.sync import AsyncToSync, SyncToAsync

from ...conf import Config
from ...hub.hub import Hub
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
from .options import LayerOptions

__all__ = ["Homes", "has_main_loop"]

logger = logging.getLogger("django_sockets")

T = TypeVar("T")


class Homes:
    """The endpoints of one layer in one process."""

    def __init__(self, options: LayerOptions, counters: LayerCounters) -> None:
        self._options = options
        self._counters = counters
        self._by_loop: dict[asyncio.AbstractEventLoop, Endpoint] = {}
        self._closers: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}
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
            self._by_loop, self._closers = {}, {}
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
        self._forget_closed()
        hub = existing_hub(loop, config)
        if hub is None:
            hub = shared_hub(config)
            if not isinstance(loop, BackgroundLoop):
                _opened[hub] = set()
        endpoint = self._by_loop[loop] = Endpoint(self._options, self._counters, hub)
        if isinstance(loop, BackgroundLoop):
            at_exit(endpoint.aclose)
        else:
            _opened.get(hub, set()).add(endpoint)
            closer = _until_loop_ends(endpoint)
            self._closers[loop] = closer
            await anext(closer)
            _close_before(loop, closer)
        return endpoint

    def _forget_closed(self) -> None:
        for loop in list(self._by_loop):
            if loop.is_closed():
                self._by_loop.pop(loop, None)
                self._closers.pop(loop, None)

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
        loop = asyncio.get_running_loop()
        endpoint = self._by_loop.pop(loop, None)
        closer = self._closers.pop(loop, None)
        if closer is not None:
            await closer.aclose()
        elif endpoint is not None:
            await endpoint.aclose()
            not_at_exit(endpoint.aclose)

    def close_soon(self) -> None:
        """Close all endpoints, each on its event loop; called when the layer is gone."""
        if self._pid != os.getpid():
            return
        for loop, endpoint in list(self._by_loop.items()):
            closer = self._closers.get(loop)
            close = endpoint.aclose if closer is None else closer.aclose
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                loop.call_soon_threadsafe(_start, loop, close)

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


def _close_before(loop: asyncio.AbstractEventLoop, closer: AsyncGenerator[None, None]) -> None:
    """Have `loop.close()` close the generator first, if it is still open."""
    close = loop.close

    def close_both() -> None:
        loop.close = close  # type: ignore[method-assign]
        if not loop.is_closed() and not loop.is_running():
            try:
                loop.run_until_complete(closer.aclose())
            except Exception:
                logger.exception("closing the channel layer with its event loop failed")
        close()

    with contextlib.suppress(AttributeError):  # A loop may not allow this.
        loop.close = close_both  # type: ignore[method-assign]


def _start(loop: asyncio.AbstractEventLoop, close: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await close()

    _closing.add(task := loop.create_task(run(), name="django_sockets channel layer end"))
    task.add_done_callback(_closing.discard)


_closing: set[asyncio.Task[None]] = set()


_opened: WeakKeyDictionary[Hub, set[Endpoint]] = WeakKeyDictionary()
"""The hubs that layers have opened, and the endpoints that use them."""


async def _until_loop_ends(endpoint: Endpoint) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await endpoint.aclose()
        await _close_unused(endpoint)


async def _close_unused(endpoint: Endpoint) -> None:
    """Close the hub of an endpoint that has ended, if a layer has opened it and nobody uses it."""
    hub = endpoint.hub
    users = _opened.get(hub)
    if users is None:
        return
    users.discard(endpoint)
    if not users and not hub.subscriptions.subscribers and not len(hub.connections):
        await hub.aclose()
