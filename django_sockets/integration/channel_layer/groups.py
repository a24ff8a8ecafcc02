"""The groups of one event loop: each is a hub channel with the local channels in it.

A normal channel in a group is served by a relay: this process puts the messages of the group into
the queue of the channel. If several processes have added it, each relays, and the identifier of the
message lets the queue take it once.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence

from ...delivery.message import Delivery
from ...errors import BrokerError
from ...hub.hub import Hub
from ...log import LogThrottle
from ...url import BrokerOptions
from .box import GapEvent
from .boxes import Boxes
from .counters import LayerCounters
from .names import DIRECT, base_of, direct, owner_of, read_group
from .options import LayerOptions

__all__ = ["Groups"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

RELAY_MESSAGES = 1024
"""The most messages that wait to be put into queues."""


class _Group:
    """The subscriber of one group.

    Attributes:
        members: process-local channel -> the time of the event loop at which it leaves the group.
        relayed: the same for channels that have a queue.
        due: no member leaves the group before this time.
        subscribed: the server has acknowledged the subscription.
    """

    def __init__(self, name: str, groups: Groups) -> None:
        self.name = name
        self.members: dict[str, float] = {}
        self.relayed: dict[str, float] = {}
        self.due = math.inf
        self.subscribed = False
        self._groups = groups

    def channels(self, channel: str) -> dict[str, float]:
        """The dict that a channel belongs to."""
        return self.relayed if owner_of(channel) is None else self.members

    def present(self, now: float) -> dict[str, float]:
        """The members whose time has not ended: the sweep has not removed the others yet."""
        if now < self.due:
            return self.members
        self.due = min(self.members.values(), default=math.inf)
        if now < self.due:
            return self.members
        return {channel: until for channel, until in self.members.items() if now < until}

    def on_delivery(self, delivery: Delivery) -> None:
        """See `Subscriber`."""
        self._groups.deliver(self, delivery)

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        """See `Subscriber`."""
        self._groups.gap(self, reason)


class Groups:
    """The groups with members on one event loop.

    `aclose` ends the relay; the hub ends the subscriptions.
    """

    def __init__(
        self, options: LayerOptions, counters: LayerCounters, hub: Hub, boxes: Boxes
    ) -> None:
        self._options = options
        self._counters = counters
        self._hub = hub
        self._boxes = boxes
        self._groups: dict[str, _Group] = {}
        self._of: dict[str, set[str]] = {}
        self._relays: deque[tuple[str, bytes, bytes]] = deque()
        self._relay_due = asyncio.Event()
        self._relaying: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._groups)

    def of(self, channel: str) -> set[str]:
        """The groups that a channel is in."""
        return self._of.get(channel, set())

    async def add(self, name: str, channel: str) -> None:
        """Add a channel. Returns when the server has acknowledged the subscription.

        Raises:
            SubscribeError, BrokerClosed: the channel is not in the group, unless it was before.
        """
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group(name, self)
        channels = group.channels(channel)
        was_in = channel in channels
        until = self._hub.loop.time() + self._options.group_expiry_seconds
        channels[channel] = until
        group.due = min(group.due, until)
        self._of.setdefault(channel, set()).add(name)
        if group.subscribed:
            return
        try:
            await self._hub.add(group, [self._options.group_channel(name)])
        except BaseException:
            if not was_in:
                await self.discard(name, channel)
            raise
        group.subscribed = self._groups.get(name) is group

    async def discard(self, name: str, channel: str) -> None:
        """Remove a channel, if it is in the group."""
        group = self._groups.get(name)
        if group is None or group.channels(channel).pop(channel, None) is None:
            return
        groups = self._of[channel]
        groups.discard(name)
        if not groups:
            del self._of[channel]
        if not group.members and not group.relayed:
            del self._groups[name]
            group.subscribed = False
            await self._hub.remove(group)

    async def leave_all(self, channel: str) -> None:
        """Remove a channel from all groups."""
        for name in list(self.of(channel)):
            await self.discard(name, channel)

    async def clear(self) -> None:
        """Remove all channels from all groups."""
        groups, self._groups = self._groups, {}
        self._of.clear()
        self._relays.clear()
        for group in groups.values():
            group.members.clear()
            group.relayed.clear()
            await self._hub.remove(group)

    def expired(self, now: float) -> list[tuple[str, str]]:
        """The pairs of group and channel whose last `group_add` is older than `group_expiry`."""
        return [
            (group.name, channel)
            for group in list(self._groups.values())
            for channels in (group.members, group.relayed)
            for channel, until in list(channels.items())
            if until <= now
        ]

    # Receiving

    def deliver(self, group: _Group, delivery: Delivery) -> None:
        """Put a message into the channels of a group."""
        try:
            identifier, message = read_group(delivery.payload)
        except ValueError:
            self._hub.poison(delivery.channel)
            return
        now = self._hub.loop.time()
        members = group.present(now)
        if members:
            content = self._options.serializer.received(message)
            self._boxes.put(members, content, group.name)
        for channel, until in group.relayed.items():
            if now < until:
                self._relay(channel, identifier, message)

    def gap(self, group: _Group, reason: str) -> None:
        """Tell the channels of a group that they may have missed messages."""
        self._counters.gaps += len(group.members)
        for channel in list(group.members):
            self._boxes.put_gap(channel, GapEvent(reason, [group.name], []))

    # Relaying to queues

    def _relay(self, channel: str, identifier: bytes, message: bytes) -> None:
        if len(self._relays) >= RELAY_MESSAGES:
            self._counters.dropped_full += 1
            return
        self._relays.append((channel, identifier, message))
        self._relay_due.set()
        if self._relaying is None:
            self._relaying = self._hub.loop.create_task(
                self._run_relay(), name="django_sockets channel layer relay"
            )

    async def _run_relay(self) -> None:
        while True:
            while self._relays:
                await self._relay_one(*self._relays.popleft())
            self._relay_due.clear()
            await self._relay_due.wait()

    async def _relay_one(self, channel: str, identifier: bytes, message: bytes) -> None:
        queues = self._hub.queues
        if queues is None:
            return
        try:
            accepted = await queues.push(
                self._options.queue(base_of(channel)),
                direct(DIRECT, channel, message),
                capacity=self._options.capacity_of(channel),
                expiry_seconds=self._options.expiry_seconds,
                once=identifier,
            )
        except BrokerError as exc:
            self._counters.queue_errors += 1
            text = "a message of a group was not put into the queue of %r: %s"
            _throttle.log(
                logging.WARNING,
                "relay",
                text,
                channel,
                exc,
                extra={"channel": channel, "reason": exc},
            )
        else:
            if not accepted:
                self._counters.dropped_full += 1

    async def aclose(self) -> None:
        """End the relay. Idempotent."""
        if self._relaying is not None:
            self._relaying.cancel()
            await asyncio.wait([self._relaying])
