"""A clock that stands still until a test moves it, for the long times of presence.

    with moved_clock() as clock:
        async with open_hub("memory://") as hub:
            ...
            hub.release("a tab")
            await clock.move(10)

The grace of members, leases and retries of hubs and sockets that are opened inside the block follow
this clock. Those of a server follow the clock of the server. Other times, such as the timeouts of
calls, do not follow it.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Callable, Iterator

from ..overrides import override_clock

__all__ = ["MovedClock", "moved_clock"]

TURNS = 25
"""Turns of the event loop after each call, in which what it begins can run."""


class _MovedTimer:
    """A call that is to come."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class MovedClock:
    """A clock that a test moves. Use it on one event loop.

    Attributes:
        now: the time in seconds. It begins with 0.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = itertools.count()
        self._timers: list[tuple[float, int, _MovedTimer]] = []

    def time(self) -> float:
        """See `overrides.Clock`."""
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> _MovedTimer:
        """See `overrides.Clock`."""
        timer = _MovedTimer(callback)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    async def move(self, seconds: float) -> None:
        """Move the clock, and make all calls that become due, each at its time and in order.

        After each call, the event loop runs for some turns. This is enough for what needs no reply
        of a server.
        """
        await _take_turns()
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            self.now = max(self.now, when)
            if callback is not None:
                callback()
                await _take_turns()
        self.now = end
        await _take_turns()


@contextlib.contextmanager
def moved_clock() -> Iterator[MovedClock]:
    """Use a `MovedClock` for the presence of hubs that are opened within a `with` block."""
    clock = MovedClock()
    with override_clock(clock):
        yield clock


async def _take_turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)
