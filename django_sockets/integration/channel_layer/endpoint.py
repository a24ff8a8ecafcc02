"""The part of a channel layer on one event loop: the owner of the channels that are received there.

An endpoint uses the hub of its event loop. It subscribes to two hub channels, one for messages to
its process-local channels and one for orders to all endpoints, and to one for each group.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from ...delivery.message import Delivery
from ...errors import BrokerError, CallError, ConfigurationError, DjangoSocketsError
from ...hub.hub import Hub
from ...log import LogThrottle
from ...url import BrokerOptions
from .box import Box, GapEvent, Item
from .boxes import Boxes
from .counters import LayerCounters
from .groups import Groups
from .names import ORDER, RESERVED, base_of, new_owner, owner_of, read_direct
from .options import LayerOptions
from .orders import Orders, read_order
from .queue_reader import QueueReader
from .registry import endpoints

__all__ = ["LINGER_SECONDS", "Endpoint"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

T = TypeVar("T")

LINGER_SECONDS = 5.0
"""A channel whose `receive` was cancelled leaves its groups after this time without another one."""
SWEEP_SECONDS = 1.0
"""Interval of the search for channels that have ended, unless `expiry` is short."""
SHORTEST_SWEEP_SECONDS = 0.05


class Endpoint:
    """The channels of one layer on one event loop. Call it on that loop only.

    Attributes:
        owner: its identifier in the names of its channels.
        hub, loop: the hub that it uses, and its event loop.
        boxes: the messages that wait for `receive`.
        counters: what it has counted; `aclose` adds this to the counters of the layer.
        groups: the groups of its channels.
        closed: `aclose` was called.
    """

    def __init__(self, options: LayerOptions, totals: LayerCounters, hub: Hub) -> None:
        self._totals = totals
        self.counters = counters = LayerCounters()
        self.options = options
        self.hub = hub
        self.loop = hub.loop
        self.owner = new_owner()
        self.boxes = Boxes(options, counters, hub.loop)
        self.groups = Groups(options, counters, hub, self.boxes)
        self.orders = Orders(options, hub, self.owner)
        self.closed = False
        self._readers: dict[str, QueueReader] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: asyncio.Lock = asyncio.Lock()
        self._started = False
        self._timer: asyncio.TimerHandle | None = None
        self._new_channels = 0

    @property
    def usable(self) -> bool:
        """Whether neither it nor its hub is closed."""
        return not self.closed and not self.hub.closed

    @property
    def started(self) -> bool:
        """Whether it hears messages and orders."""
        return self._started

    async def start(self) -> None:
        """Subscribe to messages and orders. Returns when the server has acknowledged this.

        Raises:
            SubscribeError, BrokerClosed: it was not acknowledged.
        """
        if self.started:
            return
        async with self._starting:
            if self._started:
                return
            channels = [self.options.owner_channel(self.owner), self.options.common_channel]
            await self.hub.add(self, channels)
            self._started = True
            endpoints.add(self)
            self._sweep_later()

    # Channels

    async def new_channel(self, prefix: str) -> str:
        """A new process-local name. Messages to it are kept from now on."""
        await self.start()
        self._new_channels += 1
        stem = prefix.rstrip(".")
        name = f"{stem}.{self.owner}!{self._new_channels:x}{os.urandom(4).hex()}"
        self.boxes.get(name)
        return name

    async def receive(self, channel: str) -> Item:
        """Wait for the next item of a channel. A cancelled call loses nothing."""
        await self.start()
        if owner_of(channel) is not None:
            return await self.boxes.receive(channel)
        reader = self._reader(base_of(channel))
        # After its first step, the call is waiting in its box.
        self.loop.call_soon(reader.look)
        try:
            return await self.boxes.receive(channel)
        except BaseException:
            reader.look()  # A message that has come for this call goes back to the queue.
            raise

    def put_back(self, channel: str, item: Item) -> None:
        """Put an item back that `receive` has returned."""
        self.boxes.put_back(channel, item)
        if item.entry is not None:
            self._reader(base_of(channel)).look()

    def _reader(self, base: str) -> QueueReader:
        reader = self._readers.get(base)
        if reader is None:
            queues = self.hub.queues
            if queues is None:
                raise ConfigurationError(
                    f"{self.hub.config.url}: this broker has no queues, which channels without "
                    f"'!' such as {base!r} need: use a broker of Redis, Valkey or memory://"
                )
            reader = QueueReader(base, self.options, self.counters, self.hub, queues, self.boxes)
            self._readers[base] = reader
        return reader

    # Groups

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel of this endpoint, or a channel with a queue.

        Raises:
            SubscribeError, BrokerClosed: see `Groups.add`.
        """
        await self.start()
        if owner_of(channel) is not None:
            self.boxes.get(channel)
        elif self.hub.queues is None:
            self._reader(base_of(channel))  # It raises ConfigurationError.
        await self.groups.add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel; a channel with a queue is removed by all endpoints."""
        await self.groups.discard(group, channel)
        if owner_of(channel) is None:
            await self.tell_all({"op": "discard", "group": group, "channel": channel})

    async def tell(self, owner: str, order: dict[str, Any]) -> None:
        """Send an order to an endpoint of another process. See `Orders.tell`."""
        await self.start()
        await self.orders.tell(owner, order)

    async def tell_all(self, order: dict[str, Any]) -> None:
        """Send an order to all endpoints of the layer. See `Orders.tell_all`."""
        await self.start()
        config, prefix = self.hub.config, self.options.prefix
        others = config.url.scheme not in ("memory", "fakeredis")
        await self.orders.tell_all(order, lambda: endpoints.alive(config, prefix), others=others)

    async def flush(self) -> None:
        """Remove all messages and groups, on all processes.

        Raises:
            PublishError, QueueError: some may remain.
        """
        await self.tell_all({"op": "flush"})
        if self.hub.queues is not None:
            await self.hub.queues.clear(self.options.queue(""))

    # Receiving (`Subscriber`)

    def on_delivery(self, delivery: Delivery) -> None:
        """Take a message to one channel, or an order."""
        payload = delivery.payload
        try:
            if payload[:1] == ORDER:
                self._take_order(read_order(self.options, payload))
                return
            channel, message = read_direct(payload)
        except ValueError:
            self.hub.poison(delivery.channel)
            return
        if payload[:1] == RESERVED:
            self.boxes.release(channel)
        self.boxes.put([channel], self.options.serializer.received(message))

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        """Tell the process-local channels that they may have missed messages."""
        if self.options.owner_channel(self.owner) not in channels:
            return
        self.boxes.reset_reservations()
        for box in self.boxes:
            if box.one_owner:
                self.counters.gaps += 1
                self.boxes.put_gap(box.name, GapEvent(reason, [], [box.name]))

    def _take_order(self, order: dict[str, Any]) -> None:
        if order.get("op") == "done":
            self.orders.take_reply(order)
        else:
            self.spawn(self._carry_out(order), "order")

    async def _carry_out(self, order: dict[str, Any]) -> None:
        error: str | None = None
        try:
            await self._operation(order)
        except DjangoSocketsError as exc:
            error = str(exc)
        await self.orders.reply(order, error)

    async def _operation(self, order: dict[str, Any]) -> None:
        operation = order.get("op")
        if operation == "flush":
            self.boxes.clear()
            await self.groups.clear()
        elif operation in ("add", "discard"):
            group, channel = str(order["group"]), str(order["channel"])
            if operation == "discard":
                await self.groups.discard(group, channel)
            elif owner_of(channel) == self.owner:
                await self.group_add(group, channel)
        # Orders of newer versions are ignored.

    # The end of channels

    def _sweep_later(self) -> None:
        seconds = min(SWEEP_SECONDS, self.options.expiry_seconds / 4)
        if not self.closed:
            self._timer = self.loop.call_later(max(SHORTEST_SWEEP_SECONDS, seconds), self._sweep)

    def _sweep(self) -> None:
        """End channels that nobody receives from, and memberships that have expired."""
        now = self.loop.time()
        for box in self.boxes:
            if box.waiters:
                box.used_at = now
            else:
                self._sweep_box(box, now)
        for group, channel in self.groups.expired(now):
            self.spawn(self.groups.discard(group, channel), "discard")
        for base, reader in list(self._readers.items()):
            if reader.idle:
                del self._readers[base]
        self._sweep_later()

    def _sweep_box(self, box: Box, now: float) -> None:
        gap = self.boxes.drop_expired(box, now)
        if gap is not None:
            self.boxes.put_gap(box.name, gap)
        idle = now - box.used_at
        expiry = self.options.expiry_seconds
        # A consumer in a long handler does not receive either. Its channel ends only when a
        # message has expired, and another `expiry` has passed without a `receive`.
        unread = box.unread and idle >= 2 * expiry
        unused = unread or (idle >= expiry and not self.groups.of(box.name))
        left = box.cancelled and idle >= min(LINGER_SECONDS, expiry)
        if not (unused or left):
            return
        if self.groups.of(box.name):
            self.spawn(self.groups.leave_all(box.name), "leave")
        holds_messages = any(not isinstance(item.content, GapEvent) for item in box.items)
        # Another `receive` may still come for the messages and gaps of a channel.
        if not box.items or (not holds_messages and idle >= 2 * expiry):
            if box.one_owner:
                self.counters.ended += 1
            self.boxes.forget(box)

    # Tasks and closing

    def spawn(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Run a coroutine as a task of this endpoint; an error is logged."""
        task = self.loop.create_task(work, name=f"django_sockets channel layer {what}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, BrokerError):
            text, extra = "the channel layer failed: %s", {"reason": error}
            _throttle.log(logging.WARNING, "task", text, error, extra=extra)
        elif error is not None:
            text = "the channel layer failed unexpectedly"
            _throttle.log(logging.ERROR, "unexpected", text, exc_info=error)

    async def aclose(self) -> None:
        """End: return messages of queues, unsubscribe. Calls of `receive` fail. Idempotent."""
        if self.closed:
            return
        self.closed = True
        endpoints.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self.boxes.fail(CallError("the channel layer was closed on this event loop"))
        for reader in list(self._readers.values()):
            await reader.aclose()
        await self.groups.aclose()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if not self.hub.closed:
            await self.groups.clear()
            await self.hub.remove(self)
        self._totals.merge(self.counters)

    async def call(self, make: Callable[[], Awaitable[T]]) -> T:
        """Await `make()` on the event loop of this endpoint, from any event loop."""
        if asyncio.get_running_loop() is self.loop:
            return await make()

        async def run() -> T:
            return await make()

        coroutine = run()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            raise CallError("the event loop that owns the channel has ended") from None
        return await asyncio.wrap_future(future)
