"""Start a coroutine at once. If it has to wait, a task continues it.

A server's `send` rarely has to wait, and a task for each `send` would cost more than the rest of a
delivery. Python 3.12 and later offer `Task(eager_start=True)`. For older versions this module runs
the first step itself. The coroutine cannot see a difference: `current_task()` is the task that will
continue it, so timeouts and cancel scopes work, and it has its own copy of the context variables.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

from ..loops import cancelling, uncancel

__all__ = ["Late", "start", "until_late"]

T = TypeVar("T")

if sys.version_info >= (3, 12):

    def start(
        work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[None] | None:
        """Start a coroutine on the running loop.

        Returns:
            The task that continues it, or None if it has ended.

        Raises:
            The exception of the coroutine, if it has ended with one.
        """
        task = asyncio.Task(work, loop=loop, eager_start=True)
        if not task.done():
            return task
        task.result()
        return None

else:
    from asyncio import _enter_task, _leave_task

    def start(
        work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[None] | None:
        """Start a coroutine on the running loop.

        Returns:
            The task that continues it, or None if it has ended.

        Raises:
            The exception of the coroutine, if it has ended with one.
        """
        spare = _spares.pop(loop, None) or _Spare(loop)  # The coroutine may start another one.
        outer = asyncio.current_task(loop)
        context = contextvars.copy_context()
        if outer is not None:
            _leave_task(loop, outer)
        _enter_task(loop, spare.task)
        try:
            waits_for = context.run(work.send, None)
        except BaseException as exc:
            _spares[loop] = spare
            if isinstance(exc, StopIteration):
                return None
            raise
        finally:
            _leave_task(loop, spare.task)
            if outer is not None:
                _enter_task(loop, outer)
        return spare.continue_with(work, waits_for, context)


class _Spare(Coroutine[Any, Any, None]):
    """The body of a task that is made in advance, to continue the first coroutine that has to wait.

    One such task serves all coroutines that are started in one iteration of the loop. If none of
    them has to wait, the task ends.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._work: Coroutine[Any, Any, None] | None = None
        self._context = contextvars.Context()
        self._waits_for: Any = None
        self._begun = False
        # The loop runs the first step of this task after its present iteration.
        self.task = asyncio.Task(self, loop=loop, name="django_sockets delivery")

    def continue_with(
        self, work: Coroutine[Any, Any, None], waits_for: Any, context: contextvars.Context
    ) -> asyncio.Task[None]:
        """Give the task a coroutine, and the future for which the coroutine waits first."""
        self._work, self._waits_for, self._context = work, waits_for, context
        if hasattr(waits_for, "_asyncio_future_blocking"):
            # `await` has set it. `_wait` sets it again when the task runs its first step.
            waits_for._asyncio_future_blocking = False
        return self.task

    def send(self, value: Any) -> Any:
        """Run one step of the task."""
        if self._work is None:
            self._retire()
            raise StopIteration
        if not self._begun:
            return self._wait()
        return self._context.run(self._work.send, value)

    def throw(self, error: Any, *rest: Any) -> Any:
        """Run one step after the awaited future has failed or the task was cancelled."""
        if self._work is None:
            self._retire()
            raise error
        if not self._begun and hasattr(self._waits_for, "cancel") and self._waits_for.cancel():
            return self._wait()  # As in any task, the awaited future is cancelled first.
        self._begun = True
        return self._context.run(self._work.throw, error, *rest)

    def close(self) -> None:
        """End the coroutine."""
        if self._work is not None:
            self._work.close()

    def _retire(self) -> None:
        if _spares.get(self._loop) is self:
            del _spares[self._loop]

    def _wait(self) -> Any:
        self._begun = True
        if hasattr(self._waits_for, "_asyncio_future_blocking"):
            self._waits_for._asyncio_future_blocking = True
        return self._waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("only a task can run it")


_spares: dict[asyncio.AbstractEventLoop, _Spare] = {}


class Late(Exception):
    """A coroutine did not end within its time."""


class _Timeout:
    """A timer that cancels the present task."""

    def __init__(self, seconds: float) -> None:
        self._fired = False
        self._task = asyncio.current_task()
        self._earlier = cancelling(self._task)
        self._timer = asyncio.get_running_loop().call_later(seconds, self._fire)

    def _fire(self) -> None:
        if self._task is not None:
            self._fired = True
            self._task.cancel()

    def alone(self) -> bool:
        """Whether only this timer has cancelled the task."""
        return self._fired and uncancel(self._task) <= self._earlier

    def stop(self) -> None:
        self._timer.cancel()


@types.coroutine
def until_late(work: Coroutine[Any, Any, T], seconds: float | None) -> Generator[Any, Any, T]:
    """Await a coroutine with a time limit. The timer starts when the coroutine first has to wait.

    Args:
        seconds: the time limit; None for no limit.

    Raises:
        Late: the coroutine took longer and was cancelled.
    """
    alarm = None
    try:
        waits_for = work.send(None)
        if seconds is not None:
            alarm = _Timeout(seconds)
        while True:
            try:
                yield waits_for
            except BaseException as exc:
                waits_for = work.throw(exc)
            else:
                waits_for = work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    except asyncio.CancelledError:
        if alarm is not None and alarm.alone():
            raise Late from None
        raise
    finally:
        if alarm is not None:
            alarm.stop()
