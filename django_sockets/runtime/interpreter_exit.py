"""The exit of the interpreter: what is open on the background loop ends before the loop stops."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from ..forks import PerProcess
from ..os_threads import OsThread
from .shared_hubs import close_shared_hubs
from .thread_safe_loop import BackgroundLoop

__all__ = [
    "EXIT_SECONDS",
    "at_exit",
    "call_before_exit",
    "end_loop",
    "finish_before_exit",
    "not_at_exit",
]

EXIT_SECONDS = 2.0
"""The longest that the exit of the interpreter waits for open sockets and scheduled calls."""


class _Pending:
    """The work that the exit waits for."""

    def __init__(self) -> None:
        self.calls: set[Callable[[], Awaitable[None]]] = set()
        self.futures: set[concurrent.futures.Future[Any]] = set()


_pending = PerProcess(_Pending)


def at_exit(call: Callable[[], Awaitable[None]]) -> None:
    """Await `call()` on the background loop when the interpreter exits, within `EXIT_SECONDS`."""
    _pending.current.calls.add(call)


def not_at_exit(call: Callable[[], Awaitable[None]]) -> None:
    """Undo `at_exit`."""
    _pending.current.calls.discard(call)


def finish_before_exit(future: concurrent.futures.Future[Any]) -> None:
    """Make the exit of the interpreter wait for a scheduled call, within `EXIT_SECONDS`."""
    futures = _pending.current.futures
    futures.add(future)
    future.add_done_callback(futures.discard)


def call_before_exit(call: Callable[[], None]) -> None:
    """Call `call()` when the main thread ends, before executors stop.

    `atexit` runs after executors have stopped. The hook used here is private to CPython and the
    same on 3.10 to 3.13.
    """
    try:
        threading._register_atexit(call)  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):
        atexit.register(call)


def end_loop(loop: BackgroundLoop, thread: OsThread) -> None:
    """Let the work on the loop end, then stop the loop and wait for its thread."""
    loop.ends = True
    asyncio.run_coroutine_threadsafe(_finish(), loop).add_done_callback(
        lambda _: loop.call_soon_threadsafe(loop.stop)
    )
    thread.join(2 * EXIT_SECONDS)
    if not thread.is_alive():
        loop.close()


async def _finish() -> None:
    pending = _pending.current
    waiting: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(call()) for call in list(pending.calls)
    ]
    waiting += [asyncio.wrap_future(future) for future in list(pending.futures)]
    if waiting:
        await asyncio.wait(waiting, timeout=EXIT_SECONDS)
    await close_shared_hubs()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=EXIT_SECONDS / 2)
