"""A small pool of daemon threads for handlers that are `def`.

`concurrent.futures` joins its threads when the interpreter exits, so that one handler that never
returns would keep the process alive; these threads die with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from ..errors import ThreadError
from ..os_threads import start_thread

__all__ = ["WorkerPool"]

logger = logging.getLogger("django_sockets")

T = TypeVar("T")
Job = Callable[[], None]


class WorkerPool:
    """Runs plain calls for coroutines, in the order they came when all threads are busy.

    Args:
        max_threads: threads are started as they are needed, up to this many, and kept. Handshakes
            get at most half of them, but always one.
    """

    def __init__(self, max_threads: int) -> None:
        self._max_threads = max_threads
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0  # Threads without a job, less the jobs that wait for one.
        self._spare = 0
        self._max_handshakes = max(1, max_threads // 2)
        self._handshakes = 0
        self._waiting_handshakes: deque[Job] = deque()  # At most one for each open handshake.

    async def run(self, call: Callable[..., T], *args: Any, handshake: bool = False) -> T:
        """Run `call(*args)` on a thread, in a copy of this context, and return its result.

        A cancelled call that has begun runs to its end; its result is discarded.

        Args:
            handshake: it belongs to a handshake, which waits while as many as may are running: slow
                ones leave threads to the sockets that are open.

        Raises:
            ThreadError: the pool has no thread, and none can be started.
            What the call raises; what is no `Exception`, such as SystemExit, as a RuntimeError,
            because it would stop the event loop.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def job() -> None:
            if future.cancelled():
                return
            try:
                result = context.run(call, *args)
            except BaseException as exc:
                error = _as_exception(exc)
                _report(loop, future, lambda: future.set_exception(error))
            else:
                _report(loop, future, lambda: future.set_result(result))

        if handshake:
            self._submit_handshake(job)
        else:
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
            # Without a thread now, the next call tries again.
            with contextlib.suppress(ThreadError):
                self._start_thread()

    def _start_thread(self) -> None:
        name = f"django_sockets handler {self._threads + 1}"
        start_thread(self._work, name=name, purpose="a handler that is def")
        self._threads += 1
        self._idle += 1

    def _submit(self, job: Job) -> None:
        with self._lock:
            if self._idle <= 0 and self._threads < self._max_threads:
                try:
                    self._start_thread()
                except ThreadError:
                    if not self._threads:
                        raise  # Else one of the others takes it.
            self._put(job)
            self._keep_spare()

    def _put(self, job: Job) -> None:
        self._idle -= 1
        self._jobs.put(job)

    def _submit_handshake(self, job: Job) -> None:
        with self._lock:
            if self._handshakes >= self._max_handshakes:
                self._waiting_handshakes.append(job)
                return
            self._handshakes += 1
        try:
            self._submit(lambda: self._run_handshakes(job))
        except BaseException:
            with self._lock:
                self._handshakes -= 1
            raise

    def _run_handshakes(self, job: Job) -> None:
        try:
            job()
        finally:
            with self._lock:
                if self._waiting_handshakes:
                    following = self._waiting_handshakes.popleft()
                    # Behind the handlers that wait by now. This thread is free in a moment.
                    self._put(lambda: self._run_handshakes(following))
                else:
                    self._handshakes -= 1

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except BaseException:
                logger.exception("a handler's thread goes on after an unexpected error")
            with self._lock:
                self._idle += 1


def _as_exception(raised: BaseException) -> Exception:
    """What can be set on a future, and does not stop an event loop or cancel a task there."""
    if isinstance(raised, Exception) and not isinstance(raised, StopIteration):
        return raised
    error = RuntimeError(repr(raised))
    error.__cause__ = raised
    return error


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
