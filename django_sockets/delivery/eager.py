"""Run a coroutine at once, up to where it first has to wait; a task goes on with it from there.

A server's `send` rarely has to wait, and a task for each one would cost more than all else that a
delivery takes. Python 3.12 has this as `Task(eager_start=True)`. Before it, the first step is made
by hand, and nothing in the coroutine can tell: `current_task()` is the very task that goes on with
it, so timeouts and cancel scopes that it opens hold; context variables are its own, as in a task.
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
        """Begin a coroutine on the running loop.

        Returns:
            The task that goes on with it, or None if it has ended already.

        Raises:
            What it raised, if it has ended.
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
        """Begin a coroutine on the running loop.

        Returns:
            The task that goes on with it, or None if it has ended already.

        Raises:
            What it raised, if it has ended.
        """
        spare = _spares.pop(loop, None) or _Spare(loop)  # The coroutine may begin another one.
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
        return spare.go_on(work, waits_for, context)


class _Spare(Coroutine[Any, Any, None]):
    """What a task runs that was made to go on with whichever coroutine has to wait first.

    One serves for all that is started within a turn of the loop. If nothing had to wait, it ends.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._work: Coroutine[Any, Any, None] | None = None
        self._context = contextvars.Context()
        self._waits_for: Any = None
        self._begun = False
        # Its first step is made when this turn of the loop is over.
        self.task = asyncio.Task(self, loop=loop, name="django_sockets delivery")

    def go_on(
        self, work: Coroutine[Any, Any, None], waits_for: Any, context: contextvars.Context
    ) -> asyncio.Task[None]:
        """Let the task have a coroutine, and what this waits for at its first `await`."""
        self._work, self._waits_for, self._context = work, waits_for, context
        if hasattr(waits_for, "_asyncio_future_blocking"):
            waits_for._asyncio_future_blocking = False  # `await` has set it: a task takes note.
        return self.task

    def send(self, value: Any) -> Any:
        """The task's step."""
        if self._work is None:
            self._retire()
            raise StopIteration
        if not self._begun:
            return self._wait()
        return self._context.run(self._work.send, value)

    def throw(self, error: Any, *rest: Any) -> Any:
        """The task's step when what it waited for has failed, or it was cancelled."""
        if self._work is None:
            self._retire()
            raise error
        if not self._begun and hasattr(self._waits_for, "cancel") and self._waits_for.cancel():
            return self._wait()  # As for any task: first what it waits for is cancelled.
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
        raise TypeError("only a task can await it")


_spares: dict[asyncio.AbstractEventLoop, _Spare] = {}


class Late(Exception):
    """A coroutine has waited for too long."""


class _Alarm:
    """Cancels the present task after a time."""

    def __init__(self, seconds: float) -> None:
        self._rang = False
        self._task = asyncio.current_task()
        self._earlier = cancelling(self._task)
        self._timer = asyncio.get_running_loop().call_later(seconds, self._ring)

    def _ring(self) -> None:
        if self._task is not None:
            self._rang = True
            self._task.cancel()

    def alone(self) -> bool:
        """Whether a cancellation of the task was this one's, and nobody else's besides."""
        return self._rang and uncancel(self._task) <= self._earlier

    def stop(self) -> None:
        self._timer.cancel()


@types.coroutine
def until_late(work: Coroutine[Any, Any, T], seconds: float | None) -> Generator[Any, Any, T]:
    """Await a coroutine. A timer is made when it first has to wait: most need none.

    Args:
        seconds: how long it may wait from then on; None for any time.

    Raises:
        Late: it has waited for longer, and was cancelled.
    """
    alarm = None
    try:
        waits_for = work.send(None)
        if seconds is not None:
            alarm = _Alarm(seconds)
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
