"""The shared valkey-glide clients of this process, and the thread that they run on.

valkey-glide 2.6 sends the replies of all its clients to the event loop that made the first client,
and stops working once that loop is closed. Its loop therefore runs on the daemon thread
`django_sockets glide`, which the first client starts and which never stops. After a fork the child
process leaves the thread alone and starts its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

from ...forks import PerProcess
from ...os_threads import start_thread
from ...url import BrokerURL
from ..client.pipeline import OutcomeUnknown
from .client import Done, OpenConnection, SharedClient
from .config import GlideConnection

__all__ = ["Lease", "lease"]

logger = logging.getLogger("django_sockets")


class _GlideThread:
    """The thread, its event loop, and its clients with the number of their leases."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clients: dict[object, tuple[SharedClient, int]] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        try:
            start_thread(self.loop.run_forever, name="django_sockets glide", purpose="driver=glide")
        except BaseException:
            self.loop.close()
            raise

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as a task; must be called on the glide thread."""
        task = self.loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


class _Shared:
    """The glide thread of one process, if a client has started it, and the lock of its leases."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: _GlideThread | None = None


_shared = PerProcess(_Shared)


class Lease:
    """A publisher's share of a client; its methods work on any thread."""

    def __init__(self, thread: _GlideThread, key: object, client: SharedClient) -> None:
        self._thread = thread
        self._key = key
        self._client = client

    def publish(self, messages: Sequence[tuple[bytes, bytes]], seconds: float, done: Done) -> None:
        """Publish 1..n messages in one request; requests are sent in the order of the calls."""
        self._thread.loop.call_soon_threadsafe(self._publish, messages, seconds, done)

    def _publish(self, messages: Sequence[tuple[bytes, bytes]], seconds: float, done: Done) -> None:
        def ended(task: asyncio.Task[Sequence[Exception | None]]) -> None:
            error = None if task.cancelled() else task.exception()
            if task.cancelled() or error is not None:
                # Without a traceback, because the driver's frames hold the password.
                logger.error(
                    "%s: valkey-glide failed: %r",
                    self._client.url,
                    error,
                    extra={"broker": self._client.url, "reason": error},
                )
                done([OutcomeUnknown("the driver failed")] * len(messages))
            else:
                done(task.result())

        self._thread.start(self._client.publish(messages, seconds)).add_done_callback(ended)

    def give_up(self, reason: str) -> None:
        """Replace the client, because it is connected to a wrong server."""
        self._thread.loop.call_soon_threadsafe(self._client.give_up, reason)

    async def release(self) -> None:
        """Return the lease; the last one closes the client."""
        thread, shared = self._thread, _shared.current
        with shared.lock:
            if thread is not shared.thread:
                return  # The lease belongs to the parent process.
            client, leases = thread.clients[self._key]
            if leases > 1:
                thread.clients[self._key] = client, leases - 1
                return
            del thread.clients[self._key]
            closing = asyncio.run_coroutine_threadsafe(client.aclose(), thread.loop)
        await asyncio.wrap_future(closing)


def lease(
    url: BrokerURL,
    connection: GlideConnection,
    sharded: bool,
    open_connection: OpenConnection | None,
) -> Lease:
    """A lease of the client for a configuration; it connects with the first message.

    Raises:
        ConfigurationError: see `GlidePublisher`.
    """
    key = (url, connection, sharded)
    shared = _shared.current
    with shared.lock:
        known = shared.thread.clients.get(key) if shared.thread is not None else None
        client, leases = known or (SharedClient(url, connection, sharded, open_connection), 0)
        thread = shared.thread = shared.thread or _GlideThread()
        thread.clients[key] = client, leases + 1
    return Lease(thread, key, client)
