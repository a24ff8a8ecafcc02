"""Objects that belong to one event loop."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

__all__ = ["OfOneLoop", "cancelling", "forget_closed", "uncancel"]


class OfOneLoop:
    """Base class of objects that belong to the event loop that first uses them."""

    @functools.cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        # Cached, because up to Python 3.11 the lookup makes a system call.
        return asyncio.get_running_loop()


def forget_closed(by_loop: dict[asyncio.AbstractEventLoop, Any]) -> None:
    """Remove the entries of closed loops. Call it before adding an entry for a new loop.

    A weak dictionary does not work here: the values refer to their loop, so each entry would keep
    its own key alive.
    """
    for loop in list(by_loop):
        if loop.is_closed():
            by_loop.pop(loop, None)


cancelling: Any = getattr(asyncio.Task, "cancelling", lambda task: 0)
uncancel: Any = getattr(asyncio.Task, "uncancel", lambda task: 0)
"""`Task.cancelling` and `Task.uncancel`, or a stub that returns 0 on Python 3.10."""
