"""An event loop on a separate thread, for tests that need a second loop; the library's own one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from django_sockets.runtime.background import background_loop

__all__ = ["LoopThread", "blocked_loop"]

T = TypeVar("T")

PATIENCE_SECONDS = 40.0
BLOCKED_SECONDS = 20.0
"""The end of `blocked_loop`, for a test that fails."""


class LoopThread:
    """Use it in a `with`. At the end, `asyncio.run` cancels the tasks and closes the loop."""

    def __init__(self) -> None:
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._started.set()
        await self._ended.wait()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run the coroutine there. A test on a loop awaits `asyncio.wrap_future` of the result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine there, wait for it on this thread, and return the result."""
        return self.start(coroutine).result(PATIENCE_SECONDS)

    def __enter__(self) -> LoopThread:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()


@contextlib.contextmanager
def blocked_loop() -> Iterator[None]:
    """The background loop runs nothing in this block."""
    blocked, free = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        free.wait(BLOCKED_SECONDS)

    background_loop().call_soon_threadsafe(block)
    assert blocked.wait(BLOCKED_SECONDS)
    try:
        yield
    finally:
        free.set()
