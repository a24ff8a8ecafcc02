"""The timers of all clients of the protocol on one event loop, with one timer of the loop.

A timer of the event loop for each client would cost memory and a place in the loop's heap.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Protocol

from ..loops import forget_closed

__all__ = ["Alarm", "Timers", "timers_on"]

logger = logging.getLogger("django_sockets")


class Alarm(Protocol):
    """A client with something to do at a time."""

    def wake(self, now: float) -> None:
        """Called once, after `Timers.add`. It must not wait."""


class Timers:
    """Calls `wake` of alarms, to the second. It belongs to one event loop.

    Each alarm is in at most one second; its owner remembers in which.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._seconds: dict[int, dict[Alarm, None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(map(len, self._seconds.values()))

    def add(self, alarm: Alarm, when: float) -> int:
        """Wake an alarm at a time of the loop, up to a second earlier.

        Returns:
            The second, for `discard`.
        """
        second = math.floor(when)
        self._seconds.setdefault(second, {})[alarm] = None
        if self._timer is None or second < self._timer.when():
            self._wake_at(second)
        return second

    def discard(self, alarm: Alarm, second: int) -> None:
        """Do not wake an alarm."""
        alarms = self._seconds.get(second)
        if alarms is not None:
            alarms.pop(alarm, None)
            if not alarms:
                del self._seconds[second]

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        for second in sorted(second for second in self._seconds if second <= now):
            for alarm in self._seconds.pop(second):
                try:
                    alarm.wake(now)
                except Exception:
                    logger.exception("a timer of a client failed")
        if self._seconds:
            self._wake_at(min(self._seconds))


_timers: dict[asyncio.AbstractEventLoop, Timers] = {}


def timers_on(loop: asyncio.AbstractEventLoop) -> Timers:
    """The timers of an event loop. The first call makes them."""
    found = _timers.get(loop)
    if found is None:
        forget_closed(_timers)
        found = _timers.setdefault(loop, Timers(loop))
    return found
