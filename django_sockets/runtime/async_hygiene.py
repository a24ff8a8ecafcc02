"""Database hygiene around coroutine hooks: what Django does around an async view.

`await Order.objects.aget()` and `sync_to_async` run on a thread of asgiref's, one for the process.
Connections there that are old or broken are closed before and after a hook, on that thread. The
hook does not wait for it: the thread does what it is given in order. Nothing is done, and the
thread is not woken, while no connection needs it; Django's signal tells which connections there
are. `conf.database_hygiene` does the same for plain hooks.
"""

from __future__ import annotations

import logging
import sys
import time
import weakref
from collections.abc import Awaitable
from typing import Any, TypeVar

from ..conf import hygiene_is_replaced, on_database_connection
from ..forks import after_fork_in_child
from ..log import LogThrottle
from ..url import BrokerOptions

__all__ = ["tidied"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

T = TypeVar("T")


def tidied(hook: Awaitable[T]) -> Awaitable[T]:
    """Await a coroutine hook with hygiene around it; the hook itself where Django is not loaded."""
    return _tidied(hook) if "django.db" in sys.modules else hook


async def _tidied(hook: Awaitable[T]) -> T:
    if _context is None and not _listen():
        return await hook
    context = _context(None)
    thread = _shared if context is None else _thread_of(context)
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
        connections: Django's connections there, as far as they are known.
        running: the coroutine hooks that may use them now.
    """

    def __init__(self) -> None:
        self.connections: list[weakref.ref[Any]] = []
        self.running: set[object] = set()
        self._asked = False

    def tidy(self, context: Any) -> None:
        """Have what needs it closed; on an event loop."""
        if self._asked or hygiene_is_replaced():
            return
        # Closing an old connection ends the cursors of other hooks. A broken one has none.
        alone = not self.running
        try:
            if any(_is_due(connection(), alone) for connection in self.connections):
                self.ask(_executor_of(context), alone)
        except Exception:
            _complain()

    def ask(self, executor: Any, alone: bool) -> None:
        """Have the thread look at its connections, behind what it was given before."""
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
            # Connections of other threads, of `thread_sensitive=False`, are forgotten here.
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
        connection: looked at on another thread than its own: an approximation.
        alone: no other hook may be using it.
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
    _throttle.log(logging.WARNING, "hygiene", text, exc)


# asgiref runs the plain calls of a coroutine on a thread of its ThreadSensitiveContext, and on one
# thread for the process where there is no such context.

_shared = _Thread()
_threads: weakref.WeakKeyDictionary[Any, _Thread] = weakref.WeakKeyDictionary()
_context: Any = None
"""Gives the present context, or its argument; None before `_listen`."""


def _to_async() -> Any:
    return sys.modules["asgiref.sync"].SyncToAsync


def _thread_of(context: Any) -> _Thread:
    if context is None:
        return _shared
    thread = _threads.get(context)
    if thread is None:
        thread = _threads.setdefault(context, _Thread())
    return thread


def _executor_of(context: Any) -> Any:
    if context is None:
        return _to_async().single_thread_executor
    return _to_async().context_to_thread_executor.get(context)


def _listen() -> bool:
    """Hear of connections from now on; False where Django is not in use."""
    global _context
    if "asgiref.sync" not in sys.modules or not on_database_connection(_connected):
        return False
    _context = _to_async().thread_sensitive_context.get
    executor = _executor_of(None)
    if getattr(executor, "_threads", True):
        _shared.ask(executor, alone=True)  # It is there already, perhaps with connections.
    return True


def _connected(sender: Any, connection: Any, **_: Any) -> None:
    """Django's signal `connection_created`, on the thread of the connection."""
    if getattr(_to_async().threadlocal, "main_event_loop", None) is None:
        return  # No thread of asgiref's.
    thread = _thread_of(_context(None))
    if all(known() is not connection for known in thread.connections):
        thread.connections = [*thread.connections, weakref.ref(connection)]


def _after_fork_in_child() -> None:
    global _shared, _threads
    _shared, _threads = _Thread(), weakref.WeakKeyDictionary()


after_fork_in_child(_after_fork_in_child)
