"""Daemon threads for code of the application: a pool for `def` handlers, and `run_in_thread`.

`concurrent.futures` joins its threads when the interpreter exits: one handler that never returns
would keep the process alive. Daemon threads end with the process.
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

from ..conf import Settings
from ..errors import ThreadError
from ..forks import PerProcess
from ..optional_django import database_hygiene
from ..os_threads import start_thread

__all__ = ["WorkerPool", "run_in_thread", "worker_pool"]

logger = logging.getLogger("django_sockets")

T = TypeVar("T")
Job = Callable[[], None]


class WorkerPool:
    """Runs `def` functions for coroutines; while all threads are busy, calls wait in order.

    Args:
        max_threads: the most threads. They are started when they are needed and kept. Handshakes
            use at most half of them, and always one.
    """

    def __init__(self, max_threads: int) -> None:
        self._max_threads = max_threads
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0  # Threads without a job, minus the jobs that wait for one.
        self._spare = 0
        self._max_handshakes = max(1, max_threads // 2)
        self._handshakes = 0
        self._waiting_handshakes: deque[Job] = deque()  # At most one for each open handshake.

    async def run(self, call: Callable[..., T], *args: Any, handshake: bool = False) -> T:
        """Run `call(*args)` on a thread, in a copy of this context, and return its result.

        A call that has begun runs to its end, even if this coroutine is cancelled; its result is
        then discarded.

        Args:
            handshake: the call belongs to a handshake. It waits while the most handshakes are
                running, so that slow handshakes leave threads to the open sockets.

        Raises:
            ThreadError: the pool has no thread, and none can be started.
            Exception: any error of the call. An error that is no `Exception`, such as
                SystemExit, is raised as a RuntimeError, because it would stop the event loop.
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
        """From now on keep one idle thread ready, if necessary one more than `max_threads`.

        CPython 3.12 cannot start a thread while the interpreter exits (measured on 3.12.1, also
        from `threading._register_atexit`), and `disconnect` handlers still have to run.
        """
        with self._lock:
            self._spare = 1
            self._keep_spare()

    def _keep_spare(self) -> None:
        if self._idle < self._spare and self._threads < self._max_threads + self._spare:
            # If no thread can be started now, the next call tries again.
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
                        raise  # Otherwise another thread runs the job.
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
                    # It queues behind the waiting handlers. This thread is about to be free.
                    self._put(lambda: self._run_handshakes(following))
                else:
                    self._handshakes -= 1

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except BaseException:
                logger.exception("a worker thread continues after an unexpected error")
            with self._lock:
                self._idle += 1


class SharedPool:
    """The pool of one process; None before its first use."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pool: WorkerPool | None = None


per_process = PerProcess(SharedPool)
"""The pool of this process."""


def worker_pool(settings: Settings) -> WorkerPool:
    """The pool for `def` handlers. The settings of the first call decide its size."""
    current = per_process.current
    with current.lock:
        if current.pool is None:
            current.pool = WorkerPool(max(1, int(settings.handler_threads)))
        return current.pool


def run_in_thread(command: Callable[..., Any], *args: Any, **kwargs: Any) -> threading.Thread:
    """Run `command(*args, **kwargs)` on a new thread and return at once.

    The thread belongs to no connection. Database connections that the command opened are cleaned
    up as after a request. The thread is a daemon: it does not keep the process alive, and the end
    of the process interrupts it.

    Args:
        command: a plain function. Its errors are logged.

    Returns:
        The running thread; you may join it.

    Raises:
        ThreadError: the thread cannot be started, and the command does not run.
    """
    name = getattr(command, "__name__", repr(command))

    def run() -> None:
        try:
            with database_hygiene():
                command(*args, **kwargs)
        except Exception:
            logger.exception("run_in_thread: %s failed", name, extra={"hook": name})

    return start_thread(
        run, name=f"django_sockets {name}", purpose="run_in_thread", greenlet_will_do=True
    )


def _as_exception(raised: BaseException) -> Exception:
    """An error that a future accepts and that neither stops a loop nor cancels a task."""
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
        return  # The loop is closed, so that no coroutine waits for the result.
