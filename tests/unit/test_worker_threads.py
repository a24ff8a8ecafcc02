"""The threads of `def` handlers: their number, their order, and errors in them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from django_sockets.runtime.worker_threads import WorkerPool

RAISED: list[BaseException] = [
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("raised", RAISED, ids=lambda raised: type(raised).__name__)
async def test_whatever_a_call_raises_is_an_error_of_that_call_only(raised: BaseException) -> None:
    pool = WorkerPool(1)

    def call() -> None:
        raise raised

    for _ in range(2):
        with pytest.raises(RuntimeError, match=type(raised).__name__):
            await pool.run(call)
    assert await pool.run(lambda: "still here") == "still here"


async def test_handshakes_leave_threads_to_others_and_all_get_their_turn() -> None:
    pool = WorkerPool(4)
    slow, running, most = threading.Event(), [0], [0]
    lock = threading.Lock()

    def handshake(number: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        assert slow.wait(20)
        with lock:
            running[0] -= 1
        return number

    handshakes = [
        asyncio.create_task(pool.run(handshake, number, handshake=True)) for number in range(20)
    ]
    both = threading.Barrier(2, timeout=20)
    # Two handlers side by side, while twenty handshakes want a thread.
    await asyncio.gather(pool.run(both.wait), pool.run(both.wait))
    slow.set()
    assert await asyncio.gather(*handshakes) == list(range(20))
    assert most[0] == 2


async def test_a_pool_of_one_thread_has_nothing_to_share() -> None:
    pool = WorkerPool(1)
    calls = [pool.run(int, number, handshake=number % 2 == 0) for number in range(10)]
    assert await asyncio.gather(*calls) == list(range(10))


async def test_a_call_that_is_given_up_before_it_begins_does_not_run() -> None:
    pool, go_on = WorkerPool(2), threading.Event()
    ran: list[int] = []
    first = asyncio.create_task(pool.run(go_on.wait, 20, handshake=True))
    others = [
        asyncio.create_task(pool.run(ran.append, number, handshake=True)) for number in range(5)
    ]
    await asyncio.sleep(0)
    for other in others[:4]:
        other.cancel()
    await asyncio.wait(others[:4])
    go_on.set()
    await asyncio.gather(first, others[4])
    assert ran == [4]


class Limited:
    """Fails the starts of threads from the one with this number on, as often as it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int, count: int) -> None:
        self.started = 0
        start = threading.Thread.start

        def limited(thread: threading.Thread) -> None:
            if thread.name.startswith("django_sockets"):
                self.started += 1
                if first <= self.started < first + count:
                    raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)


async def meeting(pool: WorkerPool, parties: int) -> None:
    """Calls that return only when this number of them runs at the same time."""
    barrier = threading.Barrier(parties, timeout=20)
    await asyncio.gather(*(pool.run(barrier.wait) for _ in range(parties)))


async def test_with_one_thread_at_hand_no_call_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = Limited(monkeypatch, 2, 3)
    pool = WorkerPool(3)
    assert await asyncio.gather(*(pool.run(int, number) for number in range(4))) == [0, 1, 2, 3]
    # Later there are as many as there may be.
    while limited.started < 4:
        await asyncio.gather(*(pool.run(int, number) for number in range(4)))
    await meeting(pool, 3)


async def test_without_any_thread_the_call_fails_and_does_not_run_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Limited(monkeypatch, 1, 2)
    pool = WorkerPool(1)
    ran: list[int] = []
    for handshake in (False, True):
        with pytest.raises(RuntimeError, match="none can be started: can't start new thread"):
            await pool.run(ran.append, 1, handshake=handshake)
    await pool.run(ran.append, 2, handshake=True)
    await pool.run(ran.append, 3)
    assert ran == [2, 3]


async def test_a_spare_thread_that_is_missing_is_started_with_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Limited(monkeypatch, 1, 1)
    pool = WorkerPool(1)
    pool.keep_spare()
    await pool.run(int)
    await meeting(pool, 2)


def slow_call(seconds: threading.Event) -> Callable[[], Any]:
    return lambda: seconds.wait(20)


async def test_busy_threads_are_not_counted_as_idle() -> None:
    pool, go_on = WorkerPool(2), threading.Event()
    # Queued calls once left the count of idle threads too high.
    for _ in range(3):
        await asyncio.gather(*(pool.run(int) for _ in range(5)))
    pool.keep_spare()
    busy = [asyncio.create_task(pool.run(slow_call(go_on))) for _ in range(2)]
    assert await asyncio.wait_for(pool.run(lambda: "spare"), 10) == "spare"
    go_on.set()
    await asyncio.gather(*busy)
