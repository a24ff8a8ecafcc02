"""Ends the endpoints of a loop with it, and the hubs that were opened for them.

An asynchronous generator is closed by `loop.shutdown_asyncgens()`, which `asyncio.run`,
`async_to_sync` and uvicorn call. If a loop is closed without that, its `close` does it, which is
wrapped for this.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator
from weakref import WeakKeyDictionary

from ...hub.hub import Hub
from ...loops import forget_closed
from .endpoint import Endpoint

__all__ = ["end", "end_soon", "end_with_loop", "opened"]

logger = logging.getLogger("django_sockets")

_lock = threading.Lock()
_ends: dict[asyncio.AbstractEventLoop, _LoopEnd] = {}
_opened: WeakKeyDictionary[Hub, set[Endpoint]] = WeakKeyDictionary()
"""The hubs that layers have opened, and the endpoints that use them."""
_ending: set[asyncio.Task[None]] = set()


def opened(hub: Hub) -> None:
    """Note that a layer has opened a hub, which ends with its last endpoint."""
    _opened[hub] = set()


async def end_with_loop(endpoint: Endpoint) -> None:
    """End an endpoint, which uses the running loop, when that loop ends."""
    if endpoint.hub in _opened:
        _opened[endpoint.hub].add(endpoint)
    loop = asyncio.get_running_loop()
    with _lock:
        loop_end = _ends.get(loop)
        is_new = loop_end is None
        if loop_end is None:
            forget_closed(_ends)
            loop_end = _ends[loop] = _LoopEnd(loop)
        loop_end.endpoints.add(endpoint)
    if is_new:
        await loop_end.begin()


async def end(endpoint: Endpoint) -> None:
    """End an endpoint, and its hub if a layer has opened it and nobody uses it any more.

    If it is being ended already, the call waits for that.
    """
    loop_end = _ends.get(endpoint.loop)
    if loop_end is None:
        await endpoint.aclose()
    else:
        await loop_end.end(endpoint)


def end_soon(endpoint: Endpoint) -> None:
    """End an endpoint, from any thread."""

    def start() -> None:
        task = endpoint.loop.create_task(end(endpoint), name="django_sockets channel layer end")
        _ending.add(task)
        task.add_done_callback(_ending.discard)

    with contextlib.suppress(RuntimeError):  # The loop is closed.
        endpoint.loop.call_soon_threadsafe(start)


class _LoopEnd:
    """Closes the endpoints of one loop when it ends.

    Attributes:
        endpoints: those that end then.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.endpoints: set[Endpoint] = set()
        self._lock: asyncio.Lock = asyncio.Lock()
        self._loop = loop
        self._generator = self._until_end()

    async def begin(self) -> None:
        """Let the loop know the generator, and wrap its `close`."""
        await anext(self._generator)
        self._close = self._loop.close
        with contextlib.suppress(AttributeError):  # A loop may not allow this.
            self._loop.close = self._close_both  # type: ignore[method-assign]

    async def end(self, endpoint: Endpoint) -> None:
        """See `end`."""
        async with self._lock:
            if endpoint in self.endpoints:
                await endpoint.aclose()
                await _close_unused(endpoint)
                self.endpoints.discard(endpoint)

    async def _until_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            for endpoint in list(self.endpoints):
                with contextlib.suppress(asyncio.CancelledError):
                    await self.end(endpoint)
            _ends.pop(self._loop, None)

    def _close_both(self) -> None:
        loop = self._loop
        loop.close = self._close  # type: ignore[method-assign]
        if not loop.is_closed() and not loop.is_running():
            try:
                loop.run_until_complete(self._generator.aclose())
            except Exception:
                logger.exception("closing the channel layer with its event loop failed")
        self._close()


async def _close_unused(endpoint: Endpoint) -> None:
    hub = endpoint.hub
    users = _opened.get(hub)
    if users is None:
        return
    users.discard(endpoint)
    if not users and not hub.subscriptions.subscribers and not len(hub.connections):
        await hub.aclose()
