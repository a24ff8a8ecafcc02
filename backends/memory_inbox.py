"""The inbox of one broker of a bus. Any thread fills it; the broker's event loop delivers.

A long inbox delays its publishers, and a full one drops messages and reports a loss.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from asyncio import _get_running_loop as running_loop  # Returns None where no loop runs.
from collections import deque
from collections.abc import Awaitable, Coroutine, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from ..broker import Sink, deliver_now
from ..deadlines import with_deadline
from ..history import HistoryReply
from ..log import LogThrottle
from ..presence import PresenceDiff
from ..url import BrokerURL
from .watches import Deferred, DeliverNow, Item, SnapshotItem, deliver_mixed, report_lost

if TYPE_CHECKING:
    from .memory_bus import MemoryBus

__all__ = ["INBOX_FULL", "INBOX_HIGH", "MemoryInbox"]

logger = logging.getLogger("django_sockets")

INBOX_HIGH = 1024
"""With this many messages in one inbox, publishers wait until it is read."""
INBOX_FULL = 65_536
"""With this many messages in one inbox, further ones are dropped and reported as a gap."""
OVERFLOW = "overflow"
FAILED = "internal error"
"""Reasons of a gap: a full inbox, and an unexpected error."""


class MemoryInbox:
    """The items for one sink, in the order of the bus.

    Attributes:
        channels: the names of the present subscriptions and watches. Others are not delivered.
    """

    def __init__(self, url: BrokerURL, sink: Sink, bus: MemoryBus) -> None:
        self.channels: set[str] = set()
        self._url = url
        self._sink = sink
        self._bus = bus
        # A batch that is not mixed has only messages.
        self._deliver_now = cast("DeliverNow", deliver_now(sink, lambda: self.channels))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._items: deque[Item] = deque()
        self._given: dict[int, asyncio.Future[None]] = {}
        self._mixed = False
        self._dropped: dict[str, None] = {}
        self._reader: asyncio.Task[None] | None = None
        self._waits = asyncio.Event()
        self._delivering: Coroutine[Any, Any, None] | None = None
        self._room: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)

    def start(self) -> None:
        """Deliver on the running event loop from now on. Only the first call has an effect."""
        if self._reader is None:
            self._loop = asyncio.get_running_loop()
            self._reader = self._loop.create_task(self._read(), name="django_sockets memory reader")

    # With the bus locked, on any thread

    def put(self, name: str, item: bytes | PresenceDiff) -> bool:
        """Append an item, or drop it if the inbox is full. Returns whether the inbox is long."""
        waiting = len(self._items)
        if waiting >= INBOX_FULL or self._dropped:
            self._dropped[name] = None
        else:
            self._items.append((name, item))
        if not waiting:
            self._wake()
        return waiting >= INBOX_HIGH

    def put_diff(self, watch: str, diff: PresenceDiff) -> None:
        """Append a diff, or drop it if the inbox is full."""
        self._mixed = True
        self.put(watch, diff)

    def put_reply(self, name: str, reply: HistoryReply | SnapshotItem) -> None:
        """Append a reply. There is room for one of each name."""
        waiting = len(self._items)
        self._items.append((name, reply))
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
            self._items.clear()
            for name in self.channels:  # A copy, because a publish may iterate over the set.
                self._bus.subscribers[name] = self._bus.subscribers[name] - {self}

    # On the event loop of the publisher

    async def wait_for_room(self, timeout_seconds: float) -> None:
        """Wait until the inbox is read, at most this long."""
        loop = asyncio.get_running_loop()
        room = asyncio.Event()
        with self._bus.lock:
            if len(self._items) < INBOX_HIGH:
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

    # On the event loop of the broker

    def delivery_of(self, reply: HistoryReply | SnapshotItem) -> asyncio.Future[None]:
        """A future that is done once the sink has this reply, or the inbox is closed."""
        self._given[id(reply)] = given = asyncio.get_running_loop().create_future()
        return given

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
            taken = list(self._items)
            self._items.clear()
            dropped, self._dropped = list(self._dropped), {}
            mixed, self._mixed = self._mixed, False
        self._release()
        batch = [item for item in taken if item[0] in self.channels]
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
        await deliver_mixed(self._sink, batch, lambda: self.channels, self._deliver_now)

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
            logging.ERROR, "deliver", text, self._url, exc_info=exc, extra={"broker": self._url}
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
            names = [name for name in channels if name in self.channels]
            report_lost(self._sink, names, reason)
        except Exception as exc:
            text = "%s: signalling a loss failed"
            self._throttle.log(
                logging.ERROR, "lost", text, self._url, exc_info=exc, extra={"broker": self._url}
            )

    def _release(self) -> None:
        """Wake the publishers that wait for room in the inbox."""
        with self._bus.lock:
            waiting, self._room = self._room, []
        for loop, room in waiting:
            # A publisher whose loop is closed does not wait any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(room.set)

    async def aclose(self) -> None:
        """Stop, drop the items, and let all callers go on. The subscriptions have ended before."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        if self._delivering is not None:
            self._delivering.close()
        self._items.clear()
        given, self._given = self._given, {}
        for future in given.values():
            if not future.done():
                future.set_result(None)
        self._release()
