"""What is kept for each event loop: when a loop has been closed, what it had is let go."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["forget_closed"]


def forget_closed(by_loop: dict[asyncio.AbstractEventLoop, Any]) -> None:
    """Drop the entries of closed loops; call it before a new loop gets one.

    A weak dictionary would not do: hubs and calls know their loop, so that each entry would keep
    its own key alive for ever.
    """
    for loop in list(by_loop):
        if loop.is_closed():
            by_loop.pop(loop, None)
