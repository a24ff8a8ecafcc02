"""The plain and the async calls of a socket or broadcaster, in one order, on its home loop.

A plain call (`socket.broadcast(...)`) on a thread without a running loop waits for the result. On a
thread that runs a loop it cannot wait. It is scheduled in order with the other calls of the same
object, and a failure is logged.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
from asyncio import _get_running_loop as running_loop  # Returns None where no loop runs.
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from ..errors import CallError
from ..log import LogThrottle, whereabouts
from ..os_threads import waiting
from ..url import BrokerOptions
from .interpreter_exit import finish_before_exit

__all__ = ["Calls", "Operation", "running_loop"]

logger = logging.getLogger("django_sockets")
_failures = LogThrottle(logger, BrokerOptions.log_interval_seconds, burst=5)

T = TypeVar("T")
Operation = Callable[[], Coroutine[Any, Any, T]]

MAX_SCHEDULED = 1024
"""The most scheduled calls of one object that may be pending."""

# Identifiers of the objects whose calls the current task runs inside. A hook may call the object.
_inside: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar(
    "django_sockets_inside", default=frozenset()
)


class Calls:
    """The calls of one object.

    Args:
        home: the loop they run on.
        timeout_seconds: how long a plain call waits.
    """

    __slots__ = ("_scheduled", "_tail", "_timeout_seconds", "home")

    def __init__(self, home: asyncio.AbstractEventLoop, timeout_seconds: float) -> None:
        self.home = home
        self._timeout_seconds = timeout_seconds
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
            future = self._submit(operation)
            finish_before_exit(future)
            self._watch(future)
        return None

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
        future = self._submit(operation)
        try:
            with waiting():
                return future.result(self._timeout_seconds)
        except concurrent.futures.CancelledError:
            raise CallError("the event loop stopped before the call was done") from None
        except concurrent.futures.TimeoutError:
            if future.done():
                raise  # The operation itself raised TimeoutError.
            future.cancel()
            raise CallError(
                f"the event loop did not finish the call within {self._timeout_seconds:g} s "
                "(setting sync_call_timeout_seconds); is it blocked?"
            ) from None

    def _submit(self, operation: Operation[T]) -> concurrent.futures.Future[T]:
        if self.home.is_closed() or not self.home.is_running():
            raise CallError("the event loop of this object is not running any more")
        coroutine = self._in_order(operation)
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.home)
        except RuntimeError:
            coroutine.close()
            raise CallError("the event loop of this object is not running any more") from None

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
