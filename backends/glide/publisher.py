"""Publishing through valkey-glide, for `?driver=glide`.

Messages wait in queues. Each queue has one request under way, and the messages that arrive
meanwhile form its next request. Many callers thus share a round trip, and the order is kept:
valkey-glide 2.6 does not keep the order of concurrent requests (measured: up to one message in ten
overtaken). On a cluster each queue serves a range of slots, so that a node that does not answer
holds up only the channels of its slots. Otherwise there is one queue.

`client` handles connections and the driver's errors, and `lease` the thread.
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
from .config import GlideConnection, GlideIAM, glide_connection
from .lease import lease

__all__ = ["GlideConnection", "GlideIAM", "GlidePublisher", "glide_publisher"]

CLUSTER_QUEUES = 16
MAX_REQUEST_MESSAGES = 1000
MAX_REQUEST_BYTES = 1024 * 1024
"""Maximum size of a request; a request of one message may be larger."""


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
        url: gives the options, and appears in errors.
        connection: the servers and the connection settings.
        sharded: use SPUBLISH instead of PUBLISH.
        open_connection: opens a connection of our own before the driver connects, and closes it.
            It reports the exact problem at once; the driver only reports "timed out" after its
            deadline. Called on another event loop than the broker's.

    Raises:
        ConfigurationError: valkey-glide is not installed, or does not support a setting.
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
            self._timer.cancel()  # It was set for a large message, which may have been answered.
            self._timer = None
        if self._timer is None:
            self._timer = loop.call_at(call.deadline, self._expire)
        return call.future

    def reset(self, reason: str) -> None:
        """See `Publisher`."""
        self._client.give_up(reason)

    async def aclose(self) -> None:
        """Close; messages without a reply end as unknown."""
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
        # A message that waited long behind others still gets a quarter of the timeout.
        seconds = max(remaining, self._url.options.publish_timeout_seconds / 4)

        def done(outcomes: Sequence[Exception | None]) -> None:
            with contextlib.suppress(
                RuntimeError
            ):  # The loop is closed, and with it the waiting callers.
                loop.call_soon_threadsafe(self._settle, queue, messages, outcomes)

        self._client.publish([(m.name, m.payload) for m in messages], seconds, done)

    def _settle(
        self, queue: _RequestQueue, messages: list[_Message], outcomes: Sequence[Exception | None]
    ) -> None:
        if queue.sent is not messages:
            return  # Closed meanwhile.
        self._end(queue, outcomes)
        if outcomes and isinstance(outcomes[0], NotSent):
            # There is no connection, so that the other messages fail without their own attempts.
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
        """Fail messages that waited too long behind a request, which has its own deadline."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for queue in self._queues:
            while queue.waiting and queue.waiting[0].call.deadline <= now:
                queue.waiting.popleft().settle(
                    NotSent("the server did not answer earlier messages")
                )
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
        ConfigurationError: valkey-glide is not installed, or does not support an option.
    """
    connection = glide_connection(connector, cluster=cluster)
    return GlidePublisher(
        connector.url, connection, sharded=sharded, open_connection=open_connection
    )
