"""The plain and the async calls of a socket or broadcaster, in one order, on its home loop.

A plain call (`socket.broadcast(...)`) on a thread without a running loop waits for the result. On a
thread that runs a loop it cannot wait. It is scheduled in order with the other calls of the same
object, and a failure is logged.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import logging
import threading
from asyncio import _get_running_loop as running_loop  # Returns None where no loop runs.
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar, cast

from ..errors import CallError
from ..log import LogThrottle, whereabouts
from ..os_threads import waiting
from ..url import BrokerOptions
from .interpreter_exit import finish_before_exit
from .thread_safe_loop import BackgroundLoop

__all__ = ["Calls", "Operation", "running_loop"]

logger = logging.getLogger("django_sockets")
_failures = LogThrottle(logger, BrokerOptions.log_interval_seconds, burst=5)

T = TypeVar("T")
Operation = Callable[[], Coroutine[Any, Any, T]]

NOT_RUNNING = "the event loop of this object is not running any more"
NO_RESULT = (
    "a plain call cannot return its result on a thread that runs an event loop: await the async_ "
    "form instead"
)
MAX_SCHEDULED = 1024
"""The most scheduled calls of one object that may be pending."""

# Identifiers of the objects whose calls the current task runs inside. A hook may call the object.
_inside: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar(
    "django_sockets_inside", default=frozenset()
)


class _Handover(Generic[T]):
    """A call of a thread that waits, on its way to an event loop and back.

    It is not a `concurrent.futures.Future`: a signal handler may interrupt a thread that holds the
    lock of its future. The event loop would then wait for that lock, and a call of the handler for
    the event loop. Here neither holds a lock that the other waits for.

    Attributes:
        done: released when `result` or `error` is set.
    """

    __slots__ = ("_cancelled", "_coroutine", "_loop", "_task", "done", "error", "result")

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> None:
        self._loop = loop
        self._coroutine = coroutine
        self._task: asyncio.Task[T] | None = None
        self._cancelled = False
        self.done = threading.Lock()
        self.done.acquire()
        self.result: T | None = None
        self.error: BaseException | None = None

    def begin(self) -> None:
        """On the event loop: start the call."""
        if not self._cancelled:
            self._task = self._loop.create_task(self._coroutine)
            self._task.add_done_callback(self._end)

    def cancel(self) -> None:
        """On the event loop, or before `begin` was scheduled: end the call."""
        self._cancelled = True
        if self._task is None:
            self._coroutine.close()
        else:
            self._task.cancel()

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.error = CallError("the event loop stopped before the call was done")
        else:
            self.error = task.exception()
            self.result = task.result() if self.error is None else None
        self.done.release()


class Calls:
    """The calls of one object.

    Args:
        home: the loop they run on.
        timeout_seconds: how long a plain call waits.
    """

    __slots__ = ("_scheduled", "_tail", "home", "timeout_seconds")

    def __init__(self, home: asyncio.AbstractEventLoop, timeout_seconds: float) -> None:
        self.home = home
        self.timeout_seconds = timeout_seconds
        self._tail: asyncio.Future[None] | None = None
        self._scheduled: set[object] | None = None

    def plain(self, operation: Operation[T]) -> T | None:
        """Run `operation` and return its result; on a thread that runs a loop, only schedule it.

        Raises:
            CallError: the loop has stopped, is too slow, or too many calls are scheduled.
            Exception: any error of the operation, if the call waits for it.
        """
        here = running_loop()
        if here is None:
            return self._wait(operation)
        if self._scheduled is not None and len(self._scheduled) >= MAX_SCHEDULED:
            raise CallError(
                f"{MAX_SCHEDULED} calls are scheduled already: await the async_ form instead"
            )
        if here is self.home:
            before, mine = self._ticket()
            turn = self._turn(operation, before, mine)
            try:
                task = here.create_task(turn)
            except BaseException:
                turn.close()
                self._done(mine)
                raise
            # A task that is cancelled before its first step never runs `_turn`.
            task.add_done_callback(lambda _: self._done(mine))
            self._watch(task)
        else:
            self.schedule(operation)
        return None

    def result(self, operation: Operation[T]) -> T:
        """Run `operation` and return its result; for calls that are useless without it.

        Raises:
            CallError: this thread runs an event loop, or see `plain`.
            Exception: any error of the operation.
        """
        if running_loop() is not None:
            raise CallError(NO_RESULT)
        return self._wait(operation)

    def schedule(self, operation: Operation[Any]) -> None:
        """From outside the home loop: run `operation` there without waiting for it."""
        future = self._submit(operation)
        finish_before_exit(future)
        self._watch(future)

    @property
    def scheduled(self) -> bool:
        """Whether a call is scheduled and not done yet."""
        return bool(self._scheduled) or self._tail is not None

    def awaited(self, operation: Operation[T]) -> Awaitable[T]:
        """Run `operation` on the home loop, after the calls that are scheduled there."""
        if running_loop() is not self.home:
            return asyncio.wrap_future(self._submit(operation))
        # Without this, each of a thousand calls at once would pay for one more coroutine.
        return operation() if self._tail is None else self._in_order(operation)

    def _wait(self, operation: Operation[T]) -> T:
        self._check_running()
        handover = _Handover(self.home, self._in_order(operation))
        try:
            self.home.call_soon_threadsafe(handover.begin)
        except RuntimeError:
            handover.cancel()
            raise CallError(NOT_RUNNING) from None
        with waiting():
            done = handover.done.acquire(timeout=self.timeout_seconds)
        if not done:
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                self.home.call_soon_threadsafe(handover.cancel)
            raise CallError(
                f"the event loop did not finish the call within {self.timeout_seconds:g} s "
                "(setting sync_call_timeout_seconds); is it blocked?"
            )
        if handover.error is not None:
            raise handover.error
        return cast("T", handover.result)

    def _check_running(self) -> None:
        if self.home.is_closed() or not self.home.is_running():
            raise CallError(NOT_RUNNING)

    def _submit(self, operation: Operation[T]) -> concurrent.futures.Future[T]:
        self._check_running()
        coroutine = self._in_order(operation)
        try:
            if isinstance(self.home, BackgroundLoop):
                return self.home.schedule(coroutine)
            return asyncio.run_coroutine_threadsafe(coroutine, self.home)
        except RuntimeError:
            coroutine.close()
            raise CallError(NOT_RUNNING) from None

    def _ticket(self) -> tuple[asyncio.Future[None] | None, asyncio.Future[None]]:
        """A place at the end of the queue: the future to wait for, and the future of this call."""
        before, mine = self._tail, self.home.create_future()
        self._tail = mine
        return before, mine

    async def _in_order(self, operation: Operation[T]) -> T:
        if self._tail is None or id(self) in _inside.get():
            return await operation()
        return await self._turn(operation, *self._ticket())

    async def _turn(
        self,
        operation: Operation[T],
        before: asyncio.Future[None] | None,
        mine: asyncio.Future[None],
    ) -> T:
        token = _inside.set(_inside.get() | {id(self)})
        try:
            if before is not None and not before.done():
                await asyncio.wait([before])
            return await operation()
        finally:
            _inside.reset(token)
            self._done(mine)

    def _done(self, mine: asyncio.Future[None]) -> None:
        """Let the next call in the queue run."""
        if not mine.done():
            mine.set_result(None)
        if self._tail is mine:
            self._tail = None

    def _watch(self, future: asyncio.Future[Any] | concurrent.futures.Future[Any]) -> None:
        if self._scheduled is None:
            self._scheduled = set()
        scheduled = self._scheduled
        scheduled.add(future)

        def done(ended: Any) -> None:
            scheduled.discard(future)
            if not ended.cancelled() and ended.exception() is not None:
                exc = ended.exception()
                key = whereabouts(exc)
                _failures.log(logging.ERROR, key, "a scheduled call failed", exc_info=exc)

        future.add_done_callback(done)
