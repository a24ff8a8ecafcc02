"""`memory://[name]`: a message bus inside this process.

All brokers with the same name and prefix share one bus, on any event loop and thread. A publish
puts the message into the inbox of each subscribed broker and wakes that broker's event loop. One
lock gives all subscribers the same order. The publish call then waits while an inbox is long, so
that a fast publisher cannot outrun a slow event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from asyncio import _get_running_loop as running_loop  # Returns None where no loop runs.
from collections import deque
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from typing import Any

from ..broker import Limits, QueueEntry, Report, Sink, deliver_now
from ..deadlines import with_deadline
from ..errors import BrokerClosed
from ..forks import PerProcess
from ..log import LogThrottle
from ..url import BrokerURL
from .memory_queues import MemoryQueues

__all__ = ["MemoryBroker"]

logger = logging.getLogger("django_sockets")

INBOX_HIGH = 1024
"""With this many messages in one inbox, publishers wait until it is read."""
INBOX_FULL = 65_536
"""With this many messages in one inbox, further ones are dropped and reported as a gap."""
OVERFLOW = "overflow"
FAILED = "internal error"
"""Reasons of a gap: a full inbox, and an unexpected error."""


class _Bus:
    """The subscribed brokers of each channel, and the queues. Use it with `lock` held."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.subscribers: dict[str, set[MemoryBroker]] = {}
        self.queues = MemoryQueues(self._ring)

    def _ring(self, channel: str, doorbell: bytes) -> None:
        for member in self.subscribers.get(channel, ()):
            member._put(channel, doorbell)


class _Buses:
    """The buses of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_name: dict[str, _Bus] = {}


def _warn_of_fork(inherited: _Buses) -> None:
    if inherited.by_name:
        logger.warning(
            "memory:// is a separate bus in this forked process: messages published here do not "
            "reach the parent. Use a server (redis://...) to reach other processes."
        )


_buses = PerProcess(_Buses, _warn_of_fork)


def _bus(name: str) -> _Bus:
    buses = _buses.current
    with buses.lock:
        return buses.by_name.setdefault(name, _Bus())


class MemoryBroker:
    """A member of a bus. See `django_sockets.broker` for the contract."""

    def __init__(self, url: BrokerURL, sink: Sink) -> None:
        url.check_extra({})
        self.url = url
        self.limits = Limits()
        self._sink = sink
        self._deliver_now = deliver_now(sink, lambda: self._channels)
        self._bus = _bus(f"{url.options.prefix}:{','.join(map(str, url.addresses))}/{url.path}")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: deque[tuple[str, bytes]] = deque()
        self._dropped: dict[str, None] = {}
        self._reader: asyncio.Task[None] | None = None
        self._waits = asyncio.Event()
        self._delivering: Coroutine[Any, Any, None] | None = None
        self._room: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._channels: set[str] = set()
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self._closed = False

    async def publish(
        self, channels: Sequence[str], payload: bytes, headers: Sequence[bytes] = ()
    ) -> None:
        if self._closed:
            raise BrokerClosed(self.url)
        long: set[MemoryBroker] = set()
        with self._bus.lock:
            for index, channel in enumerate(channels):
                members = self._bus.subscribers.get(channel)
                if members:
                    message = headers[index] + payload if headers else payload
                    for member in members:
                        if member._put(channel, message):
                            long.add(member)
        for member in long:
            await member._wait_for_room(self.url.options.publish_timeout_seconds)

    def _put(self, channel: str, message: bytes) -> bool:
        """Append a message, with the bus locked, on any thread; True if the inbox is long."""
        waiting = len(self._inbox)
        if waiting >= INBOX_FULL or self._dropped:
            self._dropped[channel] = None
        else:
            self._inbox.append((channel, message))
        if not waiting:
            self._wake()
        return waiting >= INBOX_HIGH

    def _wake(self) -> None:
        if self._loop is None:  # It has not subscribed to any channel yet.
            return
        try:
            if running_loop() is self._loop:
                self._loop.call_soon(self._arrive)
            else:
                self._loop.call_soon_threadsafe(self._arrive)
        except RuntimeError:  # The loop ended without `aclose`, and the inbox is not read any more.
            self._inbox.clear()
            for channel in self._channels:
                self._bus.subscribers[channel] = self._bus.subscribers[channel] - {self}

    async def _wait_for_room(self, timeout_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Event()
        with self._bus.lock:
            if len(self._inbox) < INBOX_HIGH:
                return
            self._room.append((loop, room))
        try:
            await with_deadline(timeout_seconds, room.wait())
        except asyncio.TimeoutError:
            pass  # The message is in the inbox: a loop that hangs delays publishers but fails none.
        finally:
            with self._bus.lock:
                if (loop, room) in self._room:
                    self._room.remove((loop, room))

    def _arrive(self) -> None:
        """Deliver what is in the inbox, unless `_read` waits for the end of a delivery."""
        if self._delivering is None:
            self._delivering = self._deliver()
            if self._delivering is not None:
                self._waits.set()

    async def _read(self) -> None:
        """Await the deliveries that are not done at once."""
        while True:
            await self._waits.wait()
            self._waits.clear()
            while self._delivering is not None:
                await self._delivering
                self._delivering = self._deliver()

    def _deliver(self) -> Coroutine[Any, Any, None] | None:
        """Deliver the inbox; returns a coroutine if it is not done at once."""
        with self._bus.lock:
            batch = list(self._inbox)
            self._inbox.clear()
            dropped, self._dropped = list(self._dropped), {}
        self._release()
        batch = [item for item in batch if item[0] in self._channels]
        waiting = None
        try:
            if batch:
                waiting = self._deliver_now(batch)
        except Exception as exc:
            self._failed(batch, dropped, exc)
            return None
        if waiting is not None:
            return self._finish(waiting, batch, dropped)
        if dropped:
            self._lost(dropped, OVERFLOW)
        return None

    async def _finish(
        self, waiting: Awaitable[None], batch: list[tuple[str, bytes]], dropped: list[str]
    ) -> None:
        try:
            await waiting
        except Exception as exc:
            self._failed(batch, dropped, exc)
        else:
            if dropped:
                self._lost(dropped, OVERFLOW)

    def _failed(self, batch: list[tuple[str, bytes]], dropped: list[str], exc: Exception) -> None:
        # An error of one subscriber must not end delivery to the others.
        text = "%s: delivering messages failed"
        self._throttle.log(logging.ERROR, "deliver", text, self.url, exc_info=exc)
        self._lost(dict.fromkeys([*dropped, *(name for name, _ in batch)]), FAILED)

    def _lost(self, channels: Iterable[str], reason: str) -> None:
        try:
            self._sink.lost([name for name in channels if name in self._channels], reason)
        except Exception as exc:
            text = "%s: signalling a loss failed"
            self._throttle.log(logging.ERROR, "lost", text, self.url, exc_info=exc)

    def _release(self) -> None:
        """Wake the publishers that wait for room in the inbox."""
        with self._bus.lock:
            waiting, self._room = self._room, []
        for loop, room in waiting:
            # A publisher whose loop is closed does not wait any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(room.set)

    async def subscribe(self, channels: Sequence[str]) -> None:
        if self._closed:
            raise BrokerClosed(self.url)
        if self._reader is None:
            self._loop = asyncio.get_running_loop()
            self._reader = self._loop.create_task(self._read(), name="django_sockets memory reader")
        with self._bus.lock:
            for channel in channels:
                self._bus.subscribers.setdefault(channel, set()).add(self)
                self._channels.add(channel)

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        with self._bus.lock:
            for channel in channels:
                self._channels.discard(channel)
                members = self._bus.subscribers.get(channel)
                if members is not None:
                    members.discard(self)
                    if not members:
                        del self._bus.subscribers[channel]

    async def queue_push(
        self,
        queue: str,
        payload: bytes,
        *,
        capacity: int,
        expiry_ms: int,
        doorbell: bytes,
        once: bytes = b"",
    ) -> bool:
        """See `SupportsQueue.queue_push`."""
        with self._bus_if_open().lock:
            return self._bus.queues.push(queue, payload, capacity, expiry_ms, doorbell, once)

    async def queue_pop(self, queue: str) -> tuple[QueueEntry | None, int]:
        """See `SupportsQueue.queue_pop`."""
        with self._bus_if_open().lock:
            return self._bus.queues.pop(queue)

    async def queue_return(self, queue: str, entry: QueueEntry, *, doorbell: bytes) -> None:
        """See `SupportsQueue.queue_return`."""
        with self._bus_if_open().lock:
            self._bus.queues.give_back(queue, entry, doorbell)

    async def queue_clear(self, prefix: str) -> None:
        """See `SupportsQueue.queue_clear`."""
        with self._bus_if_open().lock:
            self._bus.queues.clear(prefix)

    def _bus_if_open(self) -> _Bus:
        if self._closed:
            raise BrokerClosed(self.url)
        return self._bus

    async def inspect(self) -> Report:
        """Describe the bus."""
        return Report(
            server="none: a bus inside this process",
            topology="in process",
            warnings=["other processes receive nothing: use a server if there is more than one"],
        )

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self.unsubscribe(list(self._channels))
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        if self._delivering is not None:
            self._delivering.close()
        self._inbox.clear()
        self._release()
