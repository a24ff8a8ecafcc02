"""Lends the test's database connections to the threads that run `def` handlers.

Django gives each thread connections of its own, and the rows of a test that is rolled back are only
visible in the transaction of the test's thread. While a client or a server of this package runs an
application, the threads that run the application's `def` code use the test's connections. This
module does nothing if Django is not in use, or if the test has no transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from ..overrides import override_database_context

__all__ = ["SharedDatabase", "give_orders", "share_database", "share_database_here"]

T = TypeVar("T")

TURN_SECONDS = 5.0
"""The longest that a query waits for a handler in another thread that uses the connection."""


class SharedDatabase:
    """The connections of one test, lent to other threads.

    After its first query a handler has the connections to itself until it returns, so that its
    transactions do not mix with others. Queries of the test wait during that time.

    Args:
        connections: alias -> the test's connection.
    """

    def __init__(self, connections: dict[str, Any]) -> None:
        self._connections = connections
        self._turn = threading.RLock()
        self._thread = threading.local()
        self._undo = contextlib.ExitStack()

    def start(self) -> None:
        """Lend the connections."""
        for connection in self._connections.values():
            connection.inc_thread_sharing()
            self._undo.callback(connection.dec_thread_sharing)
            # Django 5.2 would close it at the end of a request, even in a transaction.
            connection.close_if_unusable_or_obsolete = lambda: None
            self._undo.callback(delattr, connection, "close_if_unusable_or_obsolete")
            connection.execute_wrappers.append(self._wait_for_turn)
            self._undo.callback(connection.execute_wrappers.remove, self._wait_for_turn)
        self._undo.enter_context(override_database_context(self.handler))

    def stop(self) -> None:
        """Stop lending the connections."""
        self._undo.close()

    def give_orders(self) -> None:
        """See the function of this name."""
        signals = sys.modules.get("django_sockets.middleware.signals")
        if signals is None:
            return
        for connection in self._connections.values():
            blocks = connection.atomic_blocks
            if blocks and all(block._from_testcase for block in blocks):
                for _, call, *_ in list(connection.run_on_commit):
                    if isinstance(call, signals.Order):
                        call()

    @contextlib.contextmanager
    def handler(self) -> Iterator[None]:
        """Use the connections for a `def` handler on a worker thread."""
        self.install()
        self._thread.has_turn = False
        try:
            yield
        finally:
            if self._thread.has_turn:
                self._turn.release()
            del self._thread.has_turn
            self.uninstall()

    def install(self) -> None:
        """Use the connections on this thread, until `uninstall` was called as often as this."""
        thread = self._thread
        thread.users = getattr(thread, "users", 0) + 1
        if thread.users == 1:
            thread.before = _initialised()
            django_connections = _django_connections()
            for alias, connection in self._connections.items():
                django_connections[alias] = connection

    def uninstall(self) -> None:
        """Restore the thread's own connections, and close others that it has opened."""
        thread = self._thread
        thread.users -= 1
        if thread.users:
            return
        before, thread.before = thread.before, {}
        django_connections = _django_connections()
        for alias, connection in _initialised().items():
            if alias not in self._connections:
                if alias not in before:
                    # An open connection would prevent dropping the test database.
                    connection.close()
            elif alias in before:
                django_connections[alias] = before[alias]
            else:
                del django_connections[alias]

    def _wait_for_turn(self, execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        has_turn = getattr(self._thread, "has_turn", None)
        if has_turn:
            return execute(sql, params, many, context)
        if not self._turn.acquire(timeout=TURN_SECONDS):
            raise RuntimeError(
                f"a handler has used the test's database connection for {TURN_SECONDS:g} s: in a "
                "test, def handlers must not wait for each other after a query"
            )
        if has_turn is False:
            self._thread.has_turn = True  # Until the handler returns.
            return execute(sql, params, many, context)
        try:
            return execute(sql, params, many, context)
        finally:
            self._turn.release()


def _django_connections() -> Any:
    return sys.modules["django.db"].connections


def _initialised() -> dict[str, Any]:
    return {c.alias: c for c in _django_connections().all(initialized_only=True)}


def _in_use() -> bool:
    """Whether Django is configured, so that a test may use its database."""
    conf = sys.modules.get("django.conf")
    return "django.db" in sys.modules and conf is not None and conf.settings.configured


def _of_a_test() -> dict[str, Any]:
    """The connections of this thread whose rows other threads cannot see."""
    return {
        alias: connection
        for alias, connection in _initialised().items()
        if connection.in_atomic_block
        or (connection.vendor == "sqlite" and connection.is_in_memory_db())
    }


def _as_if_no_loop_ran(call: Callable[[], T]) -> T:
    """Call a function as if this thread ran no loop: Django then uses the thread's connections."""
    loop = asyncio.get_running_loop()
    asyncio._set_running_loop(None)
    try:
        return call()
    finally:
        asyncio._set_running_loop(loop)


def _best(*found: dict[str, Any]) -> dict[str, Any]:
    """One connection for each alias; a connection in a transaction is preferred."""
    best: dict[str, Any] = {}
    for connections in found:
        for alias, connection in connections.items():
            if alias not in best or (
                connection.in_atomic_block and not best[alias].in_atomic_block
            ):
                best[alias] = connection
    return best


class _Lender:
    """One `SharedDatabase` for all clients and servers of a test."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shared: SharedDatabase | None = None
        self._users = 0

    def join(self) -> SharedDatabase | None:
        """The `SharedDatabase` that is in use, or None."""
        with self._lock:
            if self._shared is not None:
                self._users += 1
            return self._shared

    def lend(self, connections: dict[str, Any]) -> SharedDatabase | None:
        with self._lock:
            if not connections:
                return None
            if self._shared is None:
                shared = SharedDatabase(connections)
                try:
                    shared.start()
                except BaseException:
                    shared.stop()
                    raise
                self._shared = shared
            self._users += 1
            return self._shared

    def give_orders(self) -> None:
        shared = self._shared
        if shared is not None:
            shared.give_orders()

    def leave(self, shared: SharedDatabase | None) -> None:
        with self._lock:
            if shared is not None:
                self._users -= 1
                if not self._users:
                    shared.stop()
                    self._shared = None


_lender = _Lender()


def give_orders() -> None:
    """Close the sockets of logins that have ended inside the transaction of the current test.

    The orders to close them wait for the commit, and the transaction of a `TestCase` is never
    committed. Therefore the clients call this when a test waits for a message and no other
    transaction is open.
    """
    _lender.give_orders()


@contextlib.contextmanager
def share_database_here() -> Iterator[None]:
    """Lend the connections of this thread, for a `def` test."""
    shared = _lender.join() or _lender.lend(_of_a_test() if _in_use() else {})
    try:
        yield
    finally:
        _lender.leave(shared)


@contextlib.asynccontextmanager
async def share_database() -> AsyncIterator[None]:
    """Lend the connections of the test that runs this coroutine, unless they are lent already.

    With Django's runner and `async_to_sync`, the connections belong to the thread that
    `sync_to_async` uses. With pytest-asyncio and anyio, they belong to the loop's thread, outside
    the loop. The thread of `sync_to_async`, where `await Model.objects.aget()` runs, always gets
    them.
    """
    if not _in_use():
        yield
        return
    from asgiref.sync import sync_to_async

    shared = _lender.join()
    if shared is None:
        sensitive = await sync_to_async(_of_a_test)()
        shared = _lender.lend(_best(sensitive, _as_if_no_loop_ran(_of_a_test)))
    if shared is None:
        yield
        return
    try:
        await sync_to_async(shared.install)()
        try:
            yield
        finally:
            await sync_to_async(shared.uninstall)()
    finally:
        _lender.leave(shared)
