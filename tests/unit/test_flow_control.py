"""A burst has no effect; a slow consumer is detected and delays the others only briefly."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from django_sockets.delivery import flow_control
from django_sockets.delivery.flow_control import Backlog, Congestion


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_control, "STUCK_SECONDS", 0.05)
    monkeypatch.setattr(flow_control, "STRAIN_SECONDS", 0.15)


class Consumer:
    """Takes each item, with a pause of `pause_seconds`."""

    def __init__(self, box: Backlog, pause_seconds: float = 0) -> None:
        self.taken: list[Any] = []
        self._box = box
        self._pause_seconds = pause_seconds
        self._more = asyncio.Event()
        self._task = asyncio.create_task(self._consume())

    async def _consume(self) -> None:
        while True:
            if not self._box:
                await self._box.wait()
            if self._box:
                self.taken.append(self._box.take())
                self._more.set()
                await asyncio.sleep(self._pause_seconds)

    async def end_after(self, count: int) -> list[Any]:
        while len(self.taken) < count:
            self._more.clear()
            await asyncio.wait_for(self._more.wait(), 5)
        self._task.cancel()
        return self.taken


async def test_items_come_out_in_order_and_whole() -> None:
    box = Backlog(3, 100, Congestion())
    assert [box.put(i, 1) for i in range(3)] == [True] * 3
    assert (len(box), box.full) == (3, True)
    assert [box.take() for _ in range(3)] == [0, 1, 2]
    assert not box


async def test_a_mailbox_is_full_by_number_or_by_bytes() -> None:
    box = Backlog(3, 100, Congestion())
    box.put("large", 1000)  # An empty one takes one item of any size.
    assert box.full
    box.take()
    assert not box.full
    box.put("a", 99)
    assert not box.full
    box.put("b", 1)
    assert box.full


async def test_a_burst_for_a_healthy_consumer_waits_and_loses_nothing() -> None:
    congestion = Congestion()
    box = Backlog(10, 1000, congestion)
    consumer = Consumer(box)
    for i in range(1000):
        assert box.put(i, 1)
        if congestion.full:
            await congestion.relieve()
            assert not box.slow
    assert await consumer.end_after(1000) == list(range(1000))


async def test_a_consumer_that_never_asks_is_slow_and_refused_until_it_caught_up() -> None:
    congestion = Congestion()
    box = Backlog(3, 100, congestion)
    for i in range(3):
        box.put(i, 1)
    started = time.monotonic()
    await asyncio.wait_for(congestion.relieve(), 5)
    assert 0.03 < time.monotonic() - started < 1
    assert box.slow
    assert not box.put("refused", 1)
    assert box.put("forced", 1, force=True)
    # Waited for once; from now on the others do not notice it.
    assert not congestion.full
    assert [box.take() for _ in range(2)] == [0, 1]
    assert box.slow
    assert box.put("room again", 1)
    assert [box.take() for _ in range(3)] == [2, "forced", "room again"]
    assert not box.slow


async def test_one_slow_consumer_delays_a_burst_once() -> None:
    congestion = Congestion()
    stuck, healthy = Backlog(5, 1000, congestion), Backlog(5, 1000, congestion)
    consumer = Consumer(healthy)
    started = time.monotonic()
    for i in range(500):
        stuck.put(i, 1)
        assert healthy.put(i, 1)
        if congestion.full:
            await congestion.relieve()
    assert await consumer.end_after(500) == list(range(500))
    assert time.monotonic() - started < 1
    assert len(stuck) == 5


async def test_a_consumer_that_is_a_little_too_slow_for_long_is_slow() -> None:
    congestion = Congestion()
    box = Backlog(5, 1000, congestion)
    consumer = Consumer(box, pause_seconds=0.02)
    started = time.monotonic()
    while not box.slow:
        assert time.monotonic() - started < 5
        box.put("x", 1)
        if congestion.full:
            await congestion.relieve()
    assert time.monotonic() - started > 0.1
    await consumer.end_after(1)


async def test_an_idle_consumer_is_not_taken_for_a_slow_one() -> None:
    congestion = Congestion()
    box = Backlog(2, 100, congestion)
    consumer = Consumer(box)
    await asyncio.sleep(0.1)  # Longer than a busy one may take.
    box.put("a", 1)
    box.put("b", 1)
    await congestion.relieve()
    assert not box.slow
    assert await consumer.end_after(2) == ["a", "b"]


async def test_a_dropped_backlog_delays_no_other_consumer() -> None:
    congestion = Congestion()
    box = Backlog(2, 100, congestion)
    box.put("a", 1)
    box.put("b", 1)
    assert congestion.full
    assert box.clear() == ["a", "b"]
    assert not congestion.full
    await asyncio.wait_for(congestion.relieve(), 1)
    assert box.put("c", 100)
    assert box.take() == "c"


async def test_wake_ends_a_wait_and_a_cancelled_wait_loses_nothing() -> None:
    box = Backlog(2, 100, Congestion())
    waiting = asyncio.create_task(box.wait())
    await asyncio.sleep(0)
    box.wake()
    await asyncio.wait_for(waiting, 1)
    cancelled = asyncio.create_task(box.wait())
    await asyncio.sleep(0)
    box.put("a", 1)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    await asyncio.wait_for(box.wait(), 1)
    assert box.take() == "a"
