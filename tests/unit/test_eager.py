"""A coroutine that is started by hand behaves as in a task of its own."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from django_sockets.delivery.eager import start

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")


def begin(work: Any) -> asyncio.Task[None] | None:
    return start(work, asyncio.get_running_loop())


async def test_what_need_not_wait_has_run_when_start_returns_and_leaves_no_task() -> None:
    heard = []

    async def work(number: int) -> None:
        heard.append((number, asyncio.current_task()))

    here = asyncio.current_task()
    assert [begin(work(number)) for number in range(3)] == [None] * 3
    assert [number for number, _ in heard] == [0, 1, 2]
    assert here not in {task for _, task in heard}
    assert asyncio.current_task() is here
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {here}


async def test_what_it_raises_at_once_is_raised_by_start() -> None:
    async def work() -> None:
        raise ZeroDivisionError

    here = asyncio.current_task()
    with pytest.raises(ZeroDivisionError):
        begin(work())
    assert asyncio.current_task() is here


async def sleep() -> None:
    await asyncio.sleep(0.01)


async def bare_yield() -> None:
    await asyncio.sleep(0)


async def inner_task() -> None:
    await asyncio.create_task(asyncio.sleep(0.01))


async def done_meanwhile() -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, None)
    await future


async def many_waits() -> None:
    for _ in range(3):
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("wait", [sleep, bare_yield, inner_task, done_meanwhile, many_waits])
async def test_one_task_goes_on_with_it_wherever_it_has_to_wait(
    wait: Callable[[], Awaitable[None]],
) -> None:
    seen = []

    async def work() -> None:
        seen.append(asyncio.current_task())
        await wait()
        seen.append(asyncio.current_task())
        raise ZeroDivisionError

    tasks = [begin(work()) for _ in range(3)]
    assert len(set(seen)) == 3
    for task in tasks:
        assert task is not None
        with pytest.raises(ZeroDivisionError):
            await task
    assert set(seen) == set(tasks)
    assert len(seen) == 6


async def test_a_future_that_several_wait_for_wakes_each() -> None:
    future = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await future

    tasks = [begin(work()), asyncio.create_task(work()), begin(work())]
    await asyncio.sleep(0)
    future.set_result(None)
    await asyncio.gather(*(task for task in tasks if task is not None))


@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_a_cancel_reaches_it_where_it_waits(turns: int) -> None:
    ends = []
    future = asyncio.get_running_loop().create_future()

    async def work() -> None:
        try:
            await future
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    task = begin(work())
    assert task is not None
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ends == ["cancelled"]
    assert future.cancelled()


async def test_a_cancel_may_be_declined() -> None:
    async def work() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            await asyncio.sleep(0)

    task = begin(work())
    assert task is not None
    task.cancel()
    await task


async def test_a_timeout_inside_hits_it_and_not_its_caller() -> None:
    ends = []

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        # What `asyncio.timeout` and the cancel scopes of anyio do.
        asyncio.get_running_loop().call_later(0.01, task.cancel)
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            ends.append("timed out")

    task = begin(work())
    assert task is not None
    await asyncio.wait([task], timeout=5)
    assert ends == ["timed out"]
    await asyncio.sleep(0.02)  # The caller is not cancelled.


async def test_wait_for_inside_times_out() -> None:
    async def work() -> None:
        await asyncio.wait_for(asyncio.sleep(10), 0.01)

    task = begin(work())
    assert task is not None
    with pytest.raises(asyncio.TimeoutError):
        await task


async def test_context_variables_are_its_own_and_stay_with_it() -> None:
    seen = []

    async def work() -> None:
        token = variable.set("inside")
        await asyncio.sleep(0)
        seen.append(variable.get())
        variable.reset(token)  # Raises in another context.
        seen.append(variable.get())

    task = begin(work())
    assert variable.get() == "outside"
    assert task is not None
    await task
    assert seen == ["inside", "outside"]


async def test_one_may_begin_another() -> None:
    seen = []

    async def inner() -> None:
        seen.append(asyncio.current_task())
        await asyncio.sleep(0)

    async def outer() -> None:
        task = begin(inner())
        assert task is not None
        seen.append(asyncio.current_task())
        await task
        seen.append(asyncio.current_task())

    task = begin(outer())
    assert task is not None
    await task
    assert seen[1] is seen[2] is task
    assert seen[0] not in (None, task)


def test_it_works_where_no_task_is_running() -> None:
    seen = []

    async def work() -> None:
        await asyncio.sleep(0)
        seen.append(asyncio.current_task())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        started = loop.create_future()
        loop.call_soon(lambda: started.set_result(start(work(), loop)))
        task = await started
        await task
        assert seen == [task]

    asyncio.run(main())
