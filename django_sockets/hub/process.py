"""All hubs of this process, on all event loops, and the sums of their counters.

A process opens and closes hubs, and a monitoring system expects sums that never fall. So the
counters of a hub are kept here after its end. Everything in this module may be used on any thread.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from ..forks import PerProcess
from .stats import COUNTER_NAMES, Counters

if TYPE_CHECKING:
    from ..url import BrokerURL
    from .hub import Hub

__all__ = ["counters_of_process", "hubs_of_broker", "hubs_of_process", "per_process", "register"]


class _Known(NamedTuple):
    hub: weakref.ref[Hub]
    counters: Counters
    scheme: str


class _Hubs:
    """The hubs of one process.

    Attributes:
        by_loop: the hubs of `open_hub`.
        started: Unix time in seconds at which the process first used a hub.
        began: the same, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.started = time.time()
        self.began = time.monotonic()
        self.by_loop: dict[asyncio.AbstractEventLoop, list[Hub]] = {}
        # A signal handler may ask for the hubs while the same thread holds the lock.
        self._lock = threading.RLock()
        self._known: dict[int, _Known] = {}
        self._numbers = itertools.count()
        # The numbers of hubs that do not exist any more. The garbage collector may add one at any
        # place, so adding must not need the lock.
        self._gone: deque[int] = deque()
        self._ended: dict[str, dict[str, int]] = {}

    def register(self, hub: Hub, counters: Counters, scheme: str) -> None:
        number, gone = next(self._numbers), self._gone
        reference = weakref.ref(hub, lambda _: gone.append(number))
        with self._lock:
            self._forget_gone()
            self._known[number] = _Known(reference, counters, scheme)

    def _forget_gone(self) -> None:
        """Add the counters of hubs that do not exist any more to the sums. With the lock held."""
        while self._gone:
            known = self._known.pop(self._gone.popleft())
            _add(self._ended, known.scheme, known.counters.as_dict())

    def hubs(self) -> list[Hub]:
        with self._lock:
            found = [known.hub() for known in self._known.copy().values()]
        return [hub for hub in found if hub is not None]

    def counters(self) -> dict[str, dict[str, int]]:
        with self._lock:
            self._forget_gone()
            sums = {scheme: dict(counters) for scheme, counters in self._ended.items()}
            for known in self._known.copy().values():
                _add(sums, known.scheme, known.counters.as_dict())
        return sums


def _add(sums: dict[str, dict[str, int]], scheme: str, counters: dict[str, int]) -> None:
    total = sums.setdefault(scheme, dict.fromkeys(COUNTER_NAMES, 0))
    for name, count in counters.items():
        total[name] += count


per_process = PerProcess(_Hubs)
"""The hubs of this process. A forked child begins with none."""


def register(hub: Hub, counters: Counters, scheme: str) -> None:
    """Add a new hub of this process.

    Args:
        scheme: the scheme of its broker URL.
    """
    per_process.current.register(hub, counters, scheme)


def hubs_of_process() -> list[Hub]:
    """Every hub of this process that still exists, also a closed one, the oldest first."""
    return per_process.current.hubs()


def hubs_of_broker(url: BrokerURL) -> list[Hub]:
    """The open hubs of this process with this broker, the oldest first."""
    hubs = [hub for hub in hubs_of_process() if hub.config.url == url]
    return [hub for hub in hubs if not hub.closed and not hub.loop.is_closed()]


def counters_of_process() -> dict[str, dict[str, int]]:
    """Scheme of a broker URL -> counter -> the sum over all hubs since the process began.

    It includes hubs that have ended.
    """
    return per_process.current.counters()
