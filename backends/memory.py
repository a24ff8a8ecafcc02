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
import time
from asyncio import _get_running_loop as running_loop  # Returns None where no loop runs.
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from ..broker import Limits, Report, Sink, deliver_now
from ..deadlines import with_deadline
from ..errors import BrokerClosed
from ..forks import PerProcess
from ..history import READ_BYTES, HistoryReply, HistoryRule, Start
from ..log import LogThrottle
from ..presence import PresenceDiff, PresenceSnapshot
from ..url import BrokerURL
from .memory_history import MemoryHistory
from .memory_presence import MemoryPresence, MemoryPresenceCalls, ReadSnapshot
from .memory_queues import MemoryQueueCalls, MemoryQueues
from .watches import Deferred, DeliverNow, Item, SnapshotItem, deliver_mixed, report_lost, watch_of

__all__ = ["MemoryBroker"]

logger = logging.getLogger("django_sockets")

INBOX_HIGH = 1024
"""With this many messages in one inbox, publishers wait until it is read."""
INBOX_FULL = 65_536
"""With this many messages in one inbox, further ones are dropped and reported as a gap."""
OVERFLOW = "overflow"
FAILED = "internal error"
"""Reasons of a gap: a full inbox, and an unexpected error."""

_Reply = TypeVar("_Reply", HistoryReply, SnapshotItem)


class _Bus:
    """The subscribed brokers of each channel, and what the bus keeps. Use it with `lock` held."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.history = MemoryHistory()
        self.subscribers: dict[str, set[MemoryBroker]] = {}
        self.queues = MemoryQueues(self._ring)
        self.presence = MemoryPresence(self._changed)

    def _ring(self, channel: str, doorbell: bytes) -> None:
        for member in self.subscribers.get(channel, ()):
            member._put(channel, doorbell)

    def _changed(self, channel: str, diff: PresenceDiff) -> None:
        watch = watch_of(channel)
        for member in self.subscribers.get(watch, ()):
            member._put_diff(watch, diff)


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


class MemoryBroker(MemoryQueueCalls, MemoryPresenceCalls):
    """A member of a bus. See `django_sockets.broker` for the contract."""

    def __init__(self, url: BrokerURL, sink: Sink) -> None:
        url.check_extra({})
        self.url = url
        self.limits = Limits()
        self._sink = sink
        # A batch that is not mixed has only messages.
        self._deliver_now = cast("DeliverNow", deliver_now(sink, lambda: self._channels))
        self._bus = _bus(f"{url.options.prefix}:{','.join(map(str, url.addresses))}/{url.path}")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: deque[Item] = deque()
        self._given: dict[int, asyncio.Future[None]] = {}
        self._mixed = False
        self._keeps = bool(url.history)
        self.unkept = 0
        self._dropped: dict[str, None] = {}
        self._reader: asyncio.Task[None] | None = None
        self._waits = asyncio.Event()
        self._delivering: Coroutine[Any, Any, None] | None = None
        self._room: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._channels: set[str] = set()
        # Names that only calls of `_subscribe_and_read` that still wait have requested.
        self._pending: dict[str, object] = {}
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self._closed = False

    async def publish(
        self, channels: Sequence[str], payload: bytes, headers: Sequence[bytes] = ()
    ) -> None:
        if self._closed:
            raise BrokerClosed(self.url)
        long: set[MemoryBroker] = set()
        keeps = self._keeps and bool(headers)
        with self._bus.lock:
            for index, channel in enumerate(channels):
                members = self._bus.subscribers.get(channel)
                rule = self.url.history.rule_for(channel) if keeps else None
                if rule is not None:
                    message = self._bus.history.keep(
                        channel, headers[index], payload, rule, time.monotonic()
                    )
                elif members:
                    message = headers[index] + payload if headers else payload
                for member in members or ():
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

    def _put_diff(self, watch: str, diff: PresenceDiff) -> None:
        """Append a diff, with the bus locked, on any thread."""
        waiting = len(self._inbox)
        if waiting >= INBOX_FULL or self._dropped:
            self._dropped[watch] = None
        else:
            self._inbox.append((watch, diff))
            self._mixed = True
        if not waiting:
            self._wake()

    def _put_reply(self, channel: str, reply: HistoryReply | SnapshotItem) -> None:
        """Append a reply, with the bus locked. There is room for one of each name."""
        waiting = len(self._inbox)
        self._inbox.append((channel, reply))
        self._mixed = True
        if not waiting:
            self._wake()

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
            taken = list(self._inbox)
            self._inbox.clear()
            dropped, self._dropped = list(self._dropped), {}
            mixed, self._mixed = self._mixed, False
        self._release()
        batch = [item for item in taken if item[0] in self._channels]
        waiting: Awaitable[None] | None = None
        try:
            if batch and mixed:
                waiting = Deferred(partial(self._deliver_mixed, batch))
            elif batch:
                waiting = self._deliver_now(batch)
        except Exception as exc:
            self._failed(batch, dropped, exc)
        else:
            if waiting is not None:
                return self._finish(waiting, taken, batch, dropped)
            if dropped:
                self._lost(dropped, OVERFLOW)
        if mixed:  # Their channels have been unsubscribed.
            self._settle(taken)
        return None

    async def _deliver_mixed(self, batch: list[Item]) -> None:
        await deliver_mixed(self._sink, batch, lambda: self._channels, self._deliver_now)

    async def _finish(
        self,
        waiting: Awaitable[None],
        taken: list[Item],
        batch: list[Item],
        dropped: list[str],
    ) -> None:
        try:
            await waiting
        except Exception as exc:
            self._failed(batch, dropped, exc)
        else:
            if dropped:
                self._lost(dropped, OVERFLOW)
        if self._given:
            self._settle(taken)

    def _failed(self, batch: list[Item], dropped: list[str], exc: Exception) -> None:
        # An error of one subscriber must not end delivery to the others.
        text = "%s: delivering messages failed"
        self._throttle.log(
            logging.ERROR, "deliver", text, self.url, exc_info=exc, extra={"broker": self.url}
        )
        self._lost(dict.fromkeys([*dropped, *(name for name, _ in batch)]), FAILED)

    def _settle(self, taken: Iterable[Item]) -> None:
        """Wake the callers that wait for these replies to be given to the sink."""
        for _, item in taken:
            given = self._given.pop(id(item), None)
            if given is not None and not given.done():
                given.set_result(None)

    def _lost(self, channels: Iterable[str], reason: str) -> None:
        try:
            names = [name for name in channels if name in self._channels]
            report_lost(self._sink, names, reason)
        except Exception as exc:
            text = "%s: signalling a loss failed"
            self._throttle.log(
                logging.ERROR, "lost", text, self.url, exc_info=exc, extra={"broker": self.url}
            )

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
                self._pending.pop(channel, None)

    async def _subscribe_and_read(
        self, requests: Mapping[str, Callable[[], HistoryReply | SnapshotItem | None]]
    ) -> None:
        """Subscribe to names, and make the request of each; returns once all have their replies."""
        new = [name for name in requests if name not in self._channels]
        await self.subscribe(list(requests))
        loop = asyncio.get_running_loop()
        given = []
        call = object()
        self._pending.update(dict.fromkeys(new, call))
        try:
            for request in requests.values():
                reply = request()
                if reply is not None:
                    given.append(loop.create_future())
                    self._given[id(reply)] = given[-1]
            await asyncio.wait(given)
            if self._closed:
                raise BrokerClosed(self.url)
        except BaseException:
            await self.unsubscribe([name for name in new if self._pending.get(name) is call])
            raise
        for name in new:
            if self._pending.get(name) is call:
                del self._pending[name]

    def _read_in_stream(self, name: str, read: Callable[[], _Reply]) -> _Reply | None:
        """Pass the result of a read to the sink, in its place; None if the name is not wanted."""
        with self._bus.lock:
            if name not in self._channels:
                return None
            reply = read()
            self._put_reply(name, reply)
        return reply

    async def subscribe_with_history(self, starts: Mapping[str, Start]) -> None:
        """See `SupportsHistory`."""
        await self._subscribe_and_read(
            {channel: partial(self._request, channel, start) for channel, start in starts.items()}
        )

    def request_history(self, channel: str, start: Start) -> None:
        """See `SupportsHistory`."""
        self._request(channel, start)

    def _request(self, channel: str, start: Start) -> HistoryReply | None:
        messages = self._rule(channel).messages
        read = partial(self._read_history, channel, start, messages, READ_BYTES)
        return self._read_in_stream(channel, read)

    def _rule(self, channel: str) -> HistoryRule:
        rule = self.url.history.rule_for(channel)
        if rule is None:
            raise ValueError(f"channel {channel!r} has no history rule")
        return rule

    def _read_history(
        self, channel: str, start: Start, messages: int, max_bytes: int
    ) -> HistoryReply:
        history = self._bus.history
        rule = self._rule(channel)
        return history.read(channel, start, rule, time.monotonic(), messages, max_bytes)

    async def read_history(
        self, starts: Mapping[str, Start], *, messages: int = 100, max_bytes: int = READ_BYTES
    ) -> dict[str, HistoryReply]:
        """See `SupportsHistory`."""
        if self._closed:
            raise BrokerClosed(self.url)
        with self._bus.lock:
            return {
                channel: self._read_history(channel, start, messages, max_bytes)
                for channel, start in starts.items()
            }

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        with self._bus.lock:
            for channel in channels:
                self._channels.discard(channel)
                self._pending.pop(channel, None)
                members = self._bus.subscribers.get(channel)
                if members is not None:
                    members.discard(self)
                    if not members:
                        del self._bus.subscribers[channel]

    @contextlib.contextmanager
    def _queues(self) -> Iterator[MemoryQueues]:
        if self._closed:
            raise BrokerClosed(self.url)
        with self._bus.lock:
            yield self._bus.queues

    # The hooks of `MemoryPresenceCalls`

    @contextlib.contextmanager
    def _presence(self) -> Iterator[MemoryPresence]:
        if self._closed:
            raise BrokerClosed(self.url)
        with self._bus.lock:
            yield self._bus.presence

    def _snapshot(self, channel: str) -> PresenceSnapshot:
        return self._bus.presence.snapshot(channel)

    async def _watch(self, reads: Mapping[str, ReadSnapshot]) -> None:
        await self._subscribe_and_read(
            {watch: partial(self._read_in_stream, watch, read) for watch, read in reads.items()}
        )

    def _read_watch(self, watch: str, read: ReadSnapshot) -> None:
        self._read_in_stream(watch, read)

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
        given, self._given = self._given, {}
        for future in given.values():
            if not future.done():
                future.set_result(None)
        self._release()
