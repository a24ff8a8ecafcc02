"""Takes messages from the queue of one normal channel, for the `receive` calls of one event loop.

It takes one message for each call that waits, and never more, so that a process that is killed
loses at most the messages that it is handling. It asks the queue when a `receive` begins, when the
doorbell rings, and every second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ...broker import QueueEntry
from ...deadlines import with_deadline
from ...delivery.message import Delivery
from ...errors import BrokerError, QueueError
from ...hub.hub import Hub
from ...hub.queues import Queues
from ...log import LogThrottle
from ...url import BrokerOptions
from .boxes import Boxes
from .counters import LayerCounters
from .names import read_direct
from .options import LayerOptions

__all__ = ["QueueReader"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

POLL_SECONDS = 1.0
"""A doorbell may be lost with its connection. Therefore the queue is asked after this time."""
IDLE_SECONDS = 5.0
"""A reader without `receive` calls ends after this time, and with it its subscription."""
CLOSE_SECONDS = 1.0
"""How long the end of a reader waits for the reply to its last call."""


class QueueReader:
    """The reader of one queue on one event loop.

    Args:
        base: the normal channel, or the part up to "!" of channels that share the queue.
    """

    def __init__(
        self,
        base: str,
        options: LayerOptions,
        counters: LayerCounters,
        hub: Hub,
        queues: Queues,
        boxes: Boxes,
    ) -> None:
        self._base = base
        self._queue = options.queue(base)
        self._options = options
        self._counters = counters
        self._hub = hub
        self._queues = queues
        self._boxes = boxes
        self._due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._popping: asyncio.Future[tuple[QueueEntry | None, int]] | None = None
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether it has ended. `look` begins again."""
        return self._task is None

    def look(self) -> None:
        """Look at the queue and at the `receive` calls soon."""
        self._due.set()
        if self._task is None and not self._closed:
            self._task = self._hub.loop.create_task(
                self._run(), name="django_sockets channel layer queue"
            )

    def on_delivery(self, delivery: Delivery) -> None:
        """The doorbell. See `Subscriber`."""
        self._due.set()

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        """A doorbell may have been lost. See `Subscriber`."""
        self._due.set()

    async def _run(self) -> None:
        listening = False
        try:
            while True:
                self._due.clear()
                if not listening:
                    listening = await self._listen()
                await self._give_back()
                waiting = self._boxes.pending(self._base) > 0
                if waiting and await self._take():
                    continue
                try:
                    seconds = POLL_SECONDS if waiting else IDLE_SECONDS
                    await with_deadline(seconds, self._due.wait())
                except asyncio.TimeoutError:
                    if not waiting and not self._due.is_set():
                        return
        finally:
            self._task = None
            if not self._hub.closed:
                await self._hub.remove(self)

    async def _listen(self) -> bool:
        try:
            await self._hub.add(self, [self._queue])
        except BrokerError as exc:
            self._failed("cannot listen to", exc)
            return False
        return True

    async def _take(self) -> bool:
        """Take one message for a `receive` that waits. False if there is none."""
        self._popping = asyncio.ensure_future(self._queues.pop(self._queue))
        try:
            # A cancelled task must not abandon a message that is on its way.
            await asyncio.wait([self._popping])
        except asyncio.CancelledError:
            await self._finish_popping(self._popping)
            raise
        return await self._popped(self._popping)

    async def _finish_popping(self, popping: asyncio.Future[tuple[QueueEntry | None, int]]) -> None:
        await asyncio.wait([popping], timeout=CLOSE_SECONDS)
        if popping.done():
            await self._popped(popping)
        else:
            popping.cancel()
            self._counters.queue_unknown += 1

    async def _popped(self, popping: asyncio.Future[tuple[QueueEntry | None, int]]) -> bool:
        if popping.cancelled():
            self._counters.queue_unknown += 1
            return False
        error = popping.exception()
        if error is not None:
            self._counters.queue_errors += 1
            if not isinstance(error, BrokerError):
                raise error
            if isinstance(error, QueueError) and error.unknown:
                self._counters.queue_unknown += 1
            self._failed("cannot take a message from", error)
            return False
        entry, expired = popping.result()
        self._counters.dropped_expired += expired
        if entry is None:
            return False
        try:
            channel, message = read_direct(entry.payload)
        except ValueError:
            self._hub.poison(self._queue)
            return True
        self._boxes.put_entry(channel, self._options.serializer.received(message), entry)
        await self._give_back()
        return True

    async def _give_back(self) -> None:
        """Give messages back for which no `receive` waits any more."""
        surplus = self._boxes.surplus(self._base)
        while surplus:
            item = surplus.pop(0)
            if item.entry is None:
                continue
            try:
                await self._queues.give_back(self._queue, item.entry)
            except BrokerError as exc:
                if isinstance(exc, QueueError) and exc.unknown:
                    self._counters.queue_unknown += 1
                else:
                    surplus.insert(0, item)
                self._failed("cannot give a message back to", exc)
                break
        for item in reversed(surplus):
            self._boxes.put_back(self._base, item)

    def _failed(self, what: str, error: BrokerError) -> None:
        text = "%s the queue of channel %r: %s"
        _throttle.log(
            logging.WARNING,
            f"queue {what}",
            text,
            what,
            self._base,
            error,
            extra={"channel": self._base, "reason": error},
        )

    async def aclose(self) -> None:
        """End, and give messages back that nobody has received. Idempotent."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if not self._hub.closed:
            await self._give_back()
