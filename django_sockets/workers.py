"""A small pool of daemon threads for handlers that are `def`.

`concurrent.futures` joins its threads when the interpreter exits, so that one handler that never
returns would keep the process alive; these threads die with it. Imports nothing of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["WorkerPool"]

T = TypeVar("T")


class WorkerPool:
    """Runs plain calls for coroutines, in the order they came when all threads are busy.

    Args:
        max_threads: threads are started as they are needed, up to this many, and kept.
    """

    def __init__(self, max_threads: int) -> None:
        self._max_threads = max_threads
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._spare = 0

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Run `call(*args)` on a thread, in a copy of this context, and return its result.

        A cancelled call that has begun runs to its end; its result is discarded.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def job() -> None:
            try:
                result = context.run(call, *args)
            except BaseException as exc:
                # A future cannot carry StopIteration.
                error = RuntimeError(repr(exc)) if isinstance(exc, StopIteration) else exc
                _report(loop, future, lambda: future.set_exception(error))
            else:
                _report(loop, future, lambda: future.set_result(result))

        self._submit(job)
        return await future

    def keep_spare(self) -> None:
        """Always have an idle thread at hand, beyond the maximum if it must be.

        While the interpreter exits, CPython 3.12 starts no thread any more (measured on 3.12.1,
        also from `threading._register_atexit`), and `disconnect` handlers still have to run.
        """
        with self._lock:
            self._spare = 1
            self._keep_spare()

    def _keep_spare(self) -> None:
        if self._idle < self._spare and self._threads < self._max_threads + self._spare:
            self._idle += 1
            self._start_thread()

    def _start_thread(self) -> None:
        self._threads += 1
        name = f"django_sockets handler {self._threads}"
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def _submit(self, job: Callable[[], None]) -> None:
        with self._lock:
            self._jobs.put(job)
            if self._idle:
                self._idle -= 1
            elif self._threads < self._max_threads:
                self._start_thread()
            with contextlib.suppress(RuntimeError):  # The interpreter is exiting.
                self._keep_spare()

    def _work(self) -> None:
        while True:
            self._jobs.get()()
            with self._lock:
                self._idle += 1


def _report(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], settle: Callable[[], None]
) -> None:
    def on_loop() -> None:
        if not future.done():
            settle()

    try:
        loop.call_soon_threadsafe(on_loop)
    except RuntimeError:
        return  # The loop is gone, and with it everybody who waited.
