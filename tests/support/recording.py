"""An observer that keeps what it is told, for tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from django_sockets.deadlines import with_deadline
from django_sockets.observer import Observer, add_observer, remove_observer

E = TypeVar("E")


class Recorder(Observer):
    """Keeps each event. `until` waits for one on an event loop."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._lock = threading.Lock()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, condition: Callable[[], object], within_seconds: float = 30) -> None:
        """Wait until a condition is true. It is tested after each event."""

        async def wait() -> None:
            changed = asyncio.Event()
            with self._lock:
                self._waiting.append((asyncio.get_running_loop(), changed))
            while not condition():
                await changed.wait()
                changed.clear()

        await with_deadline(within_seconds, wait())

    def _take(self, event: Any) -> None:
        with self._lock:
            self.events.append(event)
            waiting = list(self._waiting)
        for loop, changed in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.set)


def _keep(self: Recorder, event: Any) -> None:
    self._take(event)


for _name in [name for name in vars(Observer) if not name.startswith("_")]:
    setattr(Recorder, _name, _keep)


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record what the library reports within a `with` block."""
    recorder = Recorder()
    add_observer(recorder)
    try:
        yield recorder
    finally:
        remove_observer(recorder)
