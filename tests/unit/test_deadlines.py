"""Waiting with a deadline does not swallow a cancellation."""

from __future__ import annotations

import asyncio

import pytest

from django_sockets.deadlines import with_deadline


async def test_a_cancellation_together_with_the_result_is_not_lost() -> None:
    """Otherwise closing a broker would wait forever for a task that it has cancelled."""
    result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(with_deadline(10, result))
    await asyncio.sleep(0)
    result.set_result(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_comes_too_late_has_ended_when_it_is_given_up() -> None:
    ended = False

    async def work() -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended = True

    with pytest.raises(asyncio.TimeoutError):
        await with_deadline(0.01, work())
    assert ended


async def test_results_and_errors_come_through() -> None:
    async def work(error: Exception | None) -> int:
        if error is not None:
            raise error
        return 1

    assert await with_deadline(1, work(None)) == 1
    with pytest.raises(OSError, match="gone"):
        await with_deadline(1, work(OSError("gone")))
