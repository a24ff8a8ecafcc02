"""Waiting with a deadline. Any module may import this one; it imports nothing of this package."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["with_deadline"]

T = TypeVar("T")


async def with_deadline(seconds: float, awaitable: Awaitable[T]) -> T:
    """Wait at most `seconds` for a result.

    After a timeout or a cancellation the awaitable is cancelled and has ended. Unlike
    `asyncio.wait_for` before Python 3.12, this function never swallows a cancellation that arrives
    together with the result.

    Raises:
        asyncio.TimeoutError: there is no result yet.
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
            future.exception()  # asyncio logs exceptions that are never retrieved.
