"""Database hygiene around coroutine hooks, as Django does it around an async view.

`await Order.objects.aget()` and `sync_to_async` run on a thread of asgiref, one for the process.
Old or broken database connections of that thread are closed on it, before and after a hook. The
hook does not wait for this: the thread runs its jobs in order. The thread is only woken when a
connection has to be closed; Django's signal `connection_created` tells which connections exist.
`optional_django.database_hygiene` does the same for `def` hooks.
"""

from __future__ import annotations

import logging
import sys
import time
import weakref
from collections.abc import Awaitable
from typing import Any, TypeVar

from ..forks import PerProcess
from ..log import LogThrottle
from ..optional_django import on_database_connection
from ..overrides import database_contexts
from ..url import BrokerOptions

__all__ = ["tidied", "with_hygiene"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

T = TypeVar("T")


def tidied(hook: Awaitable[T]) -> Awaitable[T]:
    """Wrap a coroutine hook in database hygiene; without Django, return the hook itself."""
    return with_hygiene(hook) if "django.db" in sys.modules else hook


async def with_hygiene(hook: Awaitable[T]) -> T:
    """Await a coroutine hook; close old and broken database connections before and after it."""
    if _context is None and not _listen():
        return await hook
    context = _context(None)
    thread = _thread_of(context)
    if thread.connections:
        thread.tidy(context)
    thread.running.add(hook)
    try:
        return await hook
    finally:
        thread.running.discard(hook)
        if thread.connections:
            thread.tidy(context)


class _Thread:
    """A thread that asgiref's `sync_to_async` uses.

    Attributes:
        connections: the known database connections of the thread.
        running: the coroutine hooks that may use them now.
    """

    def __init__(self) -> None:
        self.connections: list[weakref.ref[Any]] = []
        self.running: set[object] = set()
        self._asked = False

    def tidy(self, context: Any) -> None:
        """Have old and broken connections closed. Call it on an event loop."""
        if self._asked or database_contexts:
            return
        # Closing an old connection breaks the cursors of other hooks. A broken one has none.
        alone = not self.running
        try:
            if any(_is_due(connection(), alone) for connection in self.connections):
                self.ask(_executor_of(context), alone)
        except Exception:
            _complain()

    def ask(self, executor: Any, alone: bool) -> None:
        """Have the thread check its connections, after the jobs that it already has."""
        if executor is None:
            return
        self._asked = True
        try:
            executor.submit(self._look, alone)
        except RuntimeError:  # The interpreter is exiting, or the context has ended.
            self._asked = False

    def _look(self, alone: bool) -> None:
        try:
            here = sys.modules["django.db"].connections.all(initialized_only=True)
            # This drops connections of other threads (`thread_sensitive=False`).
            self.connections = [weakref.ref(connection) for connection in here]
            for connection in here:
                if alone or connection.errors_occurred:
                    connection.close_if_unusable_or_obsolete()
        except Exception:
            _complain()
        finally:
            self._asked = False


def _is_due(connection: Any, alone: bool) -> bool:
    """Whether Django's `close_if_unusable_or_obsolete` has something to do.

    Args:
        connection: belongs to another thread, so that the answer is an approximation.
        alone: True if no other hook can be using it.
    """
    if connection is None or connection.connection is None or connection.in_atomic_block:
        return False
    if connection.errors_occurred:
        return True
    return alone and (
        (connection.close_at is not None and time.monotonic() >= connection.close_at)
        or (connection.health_check_enabled and connection.health_check_done)
        or connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
    )


def _complain() -> None:
    exc = sys.exc_info()[1]
    text = "closing old database connections failed: %r"
    _throttle.log(logging.WARNING, "hygiene", text, exc, extra={"reason": exc})


class _Threads:
    """The threads that asgiref uses for the `def` functions of coroutines.

    Attributes:
        shared: the thread for coroutines without a ThreadSensitiveContext.
        by_context: the thread of each ThreadSensitiveContext.
    """

    def __init__(self) -> None:
        self.shared = _Thread()
        self.by_context: weakref.WeakKeyDictionary[Any, _Thread] = weakref.WeakKeyDictionary()


_threads = PerProcess(_Threads)
_context: Any = None
"""Returns the current ThreadSensitiveContext, or its argument; None before `_listen`."""


def _to_async() -> Any:
    return sys.modules["asgiref.sync"].SyncToAsync


def _thread_of(context: Any) -> _Thread:
    threads = _threads.current
    if context is None:
        return threads.shared
    thread = threads.by_context.get(context)
    if thread is None:
        thread = threads.by_context.setdefault(context, _Thread())
    return thread


def _executor_of(context: Any) -> Any:
    if context is None:
        return _to_async().single_thread_executor
    return _to_async().context_to_thread_executor.get(context)


def _listen() -> bool:
    """Learn of new database connections from now on; False if Django is not in use."""
    global _context
    if "asgiref.sync" not in sys.modules or not on_database_connection(_connected):
        return False
    _context = _to_async().thread_sensitive_context.get
    executor = _executor_of(None)
    if getattr(executor, "_threads", True):
        # The thread exists already and may have connections.
        _threads.current.shared.ask(executor, alone=True)
    return True


def _connected(sender: Any, connection: Any, **_: Any) -> None:
    """Receive Django's signal `connection_created`, on the thread of the connection."""
    if getattr(_to_async().threadlocal, "main_event_loop", None) is None:
        return  # Not a thread of asgiref.
    thread = _thread_of(_context(None))
    if all(known() is not connection for known in thread.connections):
        thread.connections = [*thread.connections, weakref.ref(connection)]
