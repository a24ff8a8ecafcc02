"""The event loop class of the background thread, and the function that keeps it running."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from ..os_threads import OsThread, original, replaced_by

__all__ = ["BackgroundLoop", "run_loop"]

logger = logging.getLogger("django_sockets")

T = TypeVar("T")

RESUME_SECONDS = 0.1
"""Pause before a loop resumes when an exception has stopped it twice within a second: a cause that
stays must not fill the log or use a whole core."""


class BackgroundLoop(asyncio.SelectorEventLoop):
    """A loop whose `call_soon` may be called from any thread.

    `asyncio.Queue.put_nowait` from another thread completes a future, and the future's callback
    goes through `call_soon`, which does not wake a sleeping loop. Scripts pass `queue.get` as an
    ASGI `receive` and do exactly that.

    Under gevent the loop uses the original selector and runs on a real thread.

    Attributes:
        owner: identifier of the thread that runs the loop; None before it runs.
        ends: True when the interpreter exits. Until then a loop that was stopped is run again.
        not_begun: one object for each call that another thread has scheduled without waiting for
            it, until the call has begun. Such a call comes before all later ones.
    """

    owner: int | None = None
    ends = False

    def __init__(self) -> None:
        self._greenlets = replaced_by() == "gevent"
        self.not_begun: set[object] = set()
        super().__init__(original("selectors", "DefaultSelector")() if self._greenlets else None)

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        if self.owner is not None and threading.get_ident() != self.owner:
            return self.call_soon_threadsafe(callback, *args, context=context)
        return super().call_soon(callback, *args, context=context)

    def schedule(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """`asyncio.run_coroutine_threadsafe`, noted in `not_begun`."""
        call = object()
        self.not_begun.add(call)

        async def noted() -> T:
            # This callback runs after the first step of the coroutine, which puts it in order.
            self.call_soon(self.not_begun.discard, call)
            return await coroutine

        scheduled = noted()
        try:
            future = asyncio.run_coroutine_threadsafe(scheduled, self)
        except RuntimeError:
            scheduled.close()
            self.not_begun.discard(call)
            raise
        future.add_done_callback(lambda _: self.not_begun.discard(call))
        return future

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        """As in any loop. Under gevent each call runs on a new operating system thread.

        The default executor would run its calls as greenlets of this thread.
        """
        if executor is not None or not self._greenlets:
            return super().run_in_executor(executor, func, *args)
        if func is socket.getaddrinfo:
            func = original("socket", "getaddrinfo")
        return self._in_os_thread(func, args)

    def _in_os_thread(self, func: Callable[..., Any], args: Sequence[Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self.create_future()

        def settle(report: Callable[[Any], None], value: object) -> None:
            if not future.done():
                report(value)

        def outcome(report: Callable[[Any], None], value: object) -> None:
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                self.call_soon_threadsafe(settle, report, value)

        def run() -> None:
            try:
                result = func(*args)
            except BaseException as exc:
                outcome(future.set_exception, exc)
            else:
                outcome(future.set_result, result)

        OsThread(run, name="django_sockets executor", purpose="a call outside the event loop")
        return future


def run_loop(loop: BackgroundLoop, started: threading.Event) -> None:
    """Run the loop on this thread until `loop.ends` is set or the loop is closed.

    Args:
        started: set by the first callback of the loop.
    """
    asyncio.set_event_loop(loop)
    loop.owner = threading.get_ident()
    loop.call_soon(started.set)
    stops = 0
    while not loop.ends and not loop.is_closed():
        began = time.monotonic()
        try:
            loop.run_forever()
        except BaseException:
            # asyncio lets SystemExit and KeyboardInterrupt of a callback or a handler pass.
            logger.exception("the background event loop was stopped by an exception; it goes on")
            stops = stops + 1 if time.monotonic() - began < 1.0 else 0
            if stops > 1:
                time.sleep(RESUME_SECONDS)
        else:
            if not loop.ends:
                logger.error("the background event loop was stopped by a call; it goes on")
