"""An event loop on a thread of its own, for tests that need a second one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["LoopThread"]

T = TypeVar("T")

PATIENCE_SECONDS = 40.0


class LoopThread:
    """Use it with `with`. At the end, tasks are cancelled and the loop closed, by `asyncio.run`."""

    def __init__(self) -> None:
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._started.set()
        await self._ended.wait()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run it there; from the loop of a test, `asyncio.wrap_future` waits for the result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it there while this thread stands still, and give its result."""
        return self.start(coroutine).result(PATIENCE_SECONDS)

    def __enter__(self) -> LoopThread:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
