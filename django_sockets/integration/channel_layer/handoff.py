"""`receive` on another event loop than that of the channel, without losing a message.

A cancelled call may coincide with the arrival of a message on the other thread. A lock decides
whether the call has it; if not, the message goes back to its box.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

from ...errors import CallError
from .box import Item
from .endpoint import Endpoint

__all__ = ["receive_across"]


class _Handoff:
    """One item on its way between two threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._item: Item | None = None

    def accept(self, item: Item) -> bool:
        """The item has arrived; False if the call was cancelled before."""
        with self._lock:
            if not self._cancelled:
                self._item = item
            return not self._cancelled

    def cancel(self) -> Item | None:
        """Cancel the call; returns the item if it has arrived."""
        with self._lock:
            self._cancelled = True
            return self._item


async def receive_across(endpoint: Endpoint, channel: str) -> Item:
    """`endpoint.receive(channel)`, from any event loop.

    Raises:
        CallError: the event loop of the endpoint has ended.
    """
    if asyncio.get_running_loop() is endpoint.loop:
        return await endpoint.receive(channel)
    handoff = _Handoff()
    call = _receive(endpoint, channel, handoff)
    try:
        future = asyncio.run_coroutine_threadsafe(call, endpoint.loop)
    except RuntimeError:
        call.close()
        raise CallError(f"the event loop that owns channel {channel!r} has ended") from None
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        item = handoff.cancel()
        if item is not None:
            with contextlib.suppress(RuntimeError):  # The loop has ended, and its messages with it.
                endpoint.loop.call_soon_threadsafe(endpoint.put_back, channel, item)
        raise


async def _receive(endpoint: Endpoint, channel: str, handoff: _Handoff) -> Item:
    item = await endpoint.receive(channel)
    if not handoff.accept(item):
        endpoint.put_back(channel, item)
    return item
