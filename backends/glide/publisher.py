"""Publishing through valkey-glide, for `?driver=glide`.

Messages wait in queues, and a queue has one request under way at a time: what comes in meanwhile is
its next request. So many callers share a round trip, and the order is kept: valkey-glide 2.6 keeps
none among requests side by side (measured: up to one message in ten overtaken). On a cluster a
queue is a range of slots, so that a node that does not answer holds up the channels of its own
slots only; elsewhere there is one queue.

Connections, threads and the driver's errors are the business of `glide_client`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ...errors import BrokerClosed
from ...url import BrokerURL
from ..client.commands import SLOTS, slot_of
from ..client.connection import Connection
from ..client.connector import Connector
from ..client.pipeline import SLOWEST_BYTES_PER_SECOND, NotSent, OutcomeUnknown
from ..client.publisher import PublishCall
from .client import lease
from .config import GlideConnection, GlideIAM, glide_connection

__all__ = ["GlideConnection", "GlideIAM", "GlidePublisher", "glide_publisher"]

CLUSTER_QUEUES = 16
MAX_REQUEST_MESSAGES = 1000
MAX_REQUEST_BYTES = 1024 * 1024
"""A request of one message may have more."""


class _Message:
    __slots__ = ("call", "index", "name", "payload")

    def __init__(self, call: PublishCall, index: int, name: bytes, payload: bytes) -> None:
        self.call = call
        self.index = index
        self.name = name
        self.payload = payload

    def settle(self, outcome: Exception | None) -> None:
        self.call.settle(self.index, outcome)


class _RequestQueue:
    __slots__ = ("sent", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Message] = deque()
        self.sent: list[_Message] = []

    def take(self) -> list[_Message]:
        """Move the next request's messages from `waiting` to `sent`."""
        size = 0
        while self.waiting and len(self.sent) < MAX_REQUEST_MESSAGES:
            size += len(self.waiting[0].payload)
            if self.sent and size > MAX_REQUEST_BYTES:
                break
            self.sent.append(self.waiting.popleft())
        return self.sent


class GlidePublisher:
    """A `Publisher` on one valkey-glide client, which equal configurations of a process share.

    Args:
        url: for its options, and for messages.
        connection: what to connect to, and how.
        sharded: SPUBLISH rather than PUBLISH.
        open_connection: opens a connection of our own before the driver connects, and closes it.
            It reports the exact problem at once; the driver only reports "timed out" after its
            deadline. Called on another event loop than the broker's.

    Raises:
        ConfigurationError: valkey-glide is not installed, or cannot do what `connection` says.
    """

    def __init__(
        self,
        url: BrokerURL,
        connection: GlideConnection,
        *,
        sharded: bool,
        open_connection: Callable[[], Coroutine[Any, Any, Connection]] | None = None,
    ) -> None:
        self._url = url
        self._client = lease(url, connection, sharded, open_connection)
        self._queues = [_RequestQueue() for _ in range(CLUSTER_QUEUES if connection.cluster else 1)]
        self._flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def send(
        self, messages: Sequence[tuple[bytes, bytes]]
    ) -> asyncio.Future[Sequence[Exception | None]]:
        """See `Publisher.send`. A cancelled future does not take its messages back."""
        if self._closed:
            raise BrokerClosed(self._url)
        loop = asyncio.get_running_loop()
        size = sum(len(payload) for _, payload in messages)
        seconds = self._url.options.publish_timeout_seconds + size / SLOWEST_BYTES_PER_SECOND
        call = PublishCall(len(messages), loop.time() + seconds)
        for index, (name, payload) in enumerate(messages):
            self._queue(name).waiting.append(_Message(call, index, name, payload))
        if not messages:
            call.future.set_result([])
        elif not self._flush_due:
            self._flush_due = True
            loop.call_soon(self._flush)
        if self._timer is not None and call.deadline < self._timer.when():
            self._timer.cancel()  # It was set for a large message, which may be gone.
            self._timer = None
        if self._timer is None:
            self._timer = loop.call_at(call.deadline, self._expire)
        return call.future

    def reset(self, reason: str) -> None:
        """See `Publisher`."""
        self._client.give_up(reason)

    async def aclose(self) -> None:
        """Close; what waits for a reply ends as unknown."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for queue in self._queues:
            self._end(queue, [OutcomeUnknown("closed")] * len(queue.sent))
            self._refuse(queue, NotSent("closed"))
        await self._client.release()

    def _queue(self, name: bytes) -> _RequestQueue:
        if len(self._queues) == 1:
            return self._queues[0]
        return self._queues[slot_of(name) * len(self._queues) // SLOTS]

    def _flush(self) -> None:
        self._flush_due = False
        for queue in self._queues:
            if queue.waiting and not queue.sent and not self._closed:
                self._request(queue)

    def _request(self, queue: _RequestQueue) -> None:
        loop = asyncio.get_running_loop()
        messages = queue.take()
        remaining = min(message.call.deadline for message in messages) - loop.time()
        # Whoever waited long for others still gets a fair part of the time.
        seconds = max(remaining, self._url.options.publish_timeout_seconds / 4)

        def done(outcomes: Sequence[Exception | None]) -> None:
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                loop.call_soon_threadsafe(self._settle, queue, messages, outcomes)

        self._client.publish([(m.name, m.payload) for m in messages], seconds, done)

    def _settle(
        self, queue: _RequestQueue, messages: list[_Message], outcomes: Sequence[Exception | None]
    ) -> None:
        if queue.sent is not messages:
            return  # Closed meanwhile.
        self._end(queue, outcomes)
        if outcomes and isinstance(outcomes[0], NotSent):
            # There is no connection: those who waited for one need not each try again.
            self._refuse(queue, outcomes[0])
        self._flush()

    def _end(self, queue: _RequestQueue, outcomes: Sequence[Exception | None]) -> None:
        messages, queue.sent = queue.sent, []
        for message, outcome in zip(messages, outcomes, strict=True):
            message.settle(outcome)

    def _refuse(self, queue: _RequestQueue, outcome: NotSent) -> None:
        waiting, queue.waiting = queue.waiting, deque()
        for message in waiting:
            message.settle(outcome)

    def _expire(self) -> None:
        """Give up what waits behind a request without a reply; that one has its own deadline."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for queue in self._queues:
            while queue.waiting and queue.waiting[0].call.deadline <= now:
                queue.waiting.popleft().settle(NotSent("the server did not answer those before it"))
        deadlines = [queue.waiting[0].call.deadline for queue in self._queues if queue.waiting]
        if deadlines:
            self._timer = loop.call_at(min(deadlines), self._expire)


def glide_publisher(
    connector: Connector,
    *,
    sharded: bool,
    cluster: bool = False,
    open_connection: Callable[[], Coroutine[Any, Any, Connection]] | None = None,
) -> GlidePublisher:
    """The publisher for a URL. See `GlidePublisher`.

    Raises:
        ConfigurationError: valkey-glide is not installed, or cannot do what the URL says.
    """
    connection = glide_connection(connector, cluster=cluster)
    return GlidePublisher(
        connector.url, connection, sharded=sharded, open_connection=open_connection
    )
