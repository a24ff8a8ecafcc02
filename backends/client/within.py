"""Waiting with a deadline, for tasks that others cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["within"]

_T = TypeVar("_T")


async def within(seconds: float, awaitable: Awaitable[_T]) -> _T:
    """Wait at most so long for a result; what is given up is cancelled, and has ended.

    Unlike `asyncio.wait_for` before Python 3.12 this never swallows a cancellation that comes at
    the same time as the result: a task that was cancelled once, and is awaited, would go on.

    Raises:
        asyncio.TimeoutError: there is none yet.
    """
    future = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait([future], timeout=seconds)
        if future.done():
            return future.result()
        raise asyncio.TimeoutError
    finally:
        if not future.done():
            future.cancel()
            await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # Seen, or given up: no complaint about it.
