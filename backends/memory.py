"""`memory://[name]`: a message bus inside this process.

All brokers with the same name and prefix share one bus, on any event loop and thread. A publish
puts the message into the inbox of each subscribed broker and wakes that broker's event loop. One
lock gives all subscribers the same order. The publish call then waits while an inbox is long, so
that a fast publisher cannot outrun a slow event loop.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..broker import Limits, Report, Sink
from ..errors import BrokerClosed
from ..url import BrokerURL
from .memory_bus import bus_named
from .memory_history import MemoryHistoryCalls
from .memory_inbox import MemoryInbox
from .memory_presence import MemoryPresenceCalls
from .memory_queues import MemoryQueueCalls

__all__ = ["MemoryBroker"]


class MemoryBroker(MemoryHistoryCalls, MemoryPresenceCalls, MemoryQueueCalls):
    """A member of a bus. See `django_sockets.broker` for the contract."""

    def __init__(self, url: BrokerURL, sink: Sink) -> None:
        url.check_extra({})
        bus = bus_named(f"{url.options.prefix}:{','.join(map(str, url.addresses))}/{url.path}")
        super().__init__(url, sink, bus)
        self.limits = Limits()
        self._keeps = bool(url.history)

    async def publish(
        self, channels: Sequence[str], payload: bytes, headers: Sequence[bytes] = ()
    ) -> None:
        if self._closed:
            raise BrokerClosed(self.url)
        long: set[MemoryInbox] = set()
        keeps = self._keeps and bool(headers)
        with self._bus.lock:
            for index, channel in enumerate(channels):
                inboxes = self._bus.subscribers.get(channel)
                rule = self.url.history.rule_for(channel) if keeps else None
                if rule is not None:
                    message = self._bus.history.keep(
                        channel, headers[index], payload, rule, time.monotonic()
                    )
                elif inboxes:
                    message = headers[index] + payload if headers else payload
                for inbox in inboxes or ():
                    if inbox.put(channel, message):
                        long.add(inbox)
        for inbox in long:
            await inbox.wait_for_room(self.url.options.publish_timeout_seconds)

    async def inspect(self) -> Report:
        """Describe the bus."""
        return Report(
            server="none: a bus inside this process",
            topology="in process",
            warnings=["other processes receive nothing: use a server if there is more than one"],
        )
