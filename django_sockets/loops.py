"""What belongs to one event loop, and what is kept for each: it is let go when a loop is closed."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

__all__ = ["OfOneLoop", "cancelling", "forget_closed", "uncancel"]


class OfOneLoop:
    """Base of what belongs to the event loop that first uses it."""

    @functools.cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        # Asked for once: until Python 3.11 that is a system call.
        return asyncio.get_running_loop()


def forget_closed(by_loop: dict[asyncio.AbstractEventLoop, Any]) -> None:
    """Drop the entries of closed loops; call it before a new loop gets one.

    A weak dictionary would not do: hubs and calls know their loop, so that each entry would keep
    its own key alive for ever.
    """
    for loop in list(by_loop):
        if loop.is_closed():
            by_loop.pop(loop, None)


cancelling: Any = getattr(asyncio.Task, "cancelling", lambda task: 0)
uncancel: Any = getattr(asyncio.Task, "uncancel", lambda task: 0)
"""How many want a task to end, and that without one; Python 3.10 does not count them."""
