"""The fan-out: delivers the messages of a batch to all subscribers of their channels, in order.

A message goes straight into the server's `send` if the subscriber has an idle send queue.
Otherwise the subscriber gets it through `on_delivery`. A subscriber whose client has to be waited
for, or whose backlog is full, does not delay the other subscribers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Protocol, TypeAlias

from ..log import LogThrottle, whereabouts
from ..url import BrokerOptions
from .channel import Channel, Recipient, Recipients, Subscriber
from .eager import start
from .flow_control import Congestion
from .message import Delivery
from .send_queue import SendQueue

__all__ = ["TURN_DELIVERIES", "FanOut", "FanOutCounters", "Run", "new_run"]

logger = logging.getLogger("django_sockets")
_failures = LogThrottle(logger, BrokerOptions.log_interval_seconds, burst=5)

TURN_DELIVERIES = 1000
"""The number of deliveries, a few milliseconds of work, after which other tasks of the loop run.
Servers write their buffers then, and the memory of the buffers is reused."""

Run: TypeAlias = tuple[Channel, list[Delivery], Recipients, Iterator[Recipient]]
"""Successive messages on one channel, its subscribers when the run was made, and the subscribers
that have not got it yet.

One subscriber gets the whole run before the next one: the kernel needs less than half of the time
for successive writes to one connection. A plain tuple, because each message on a channel of its
own needs one.
"""


def new_run(channel: Channel, messages: list[Delivery]) -> Run:
    """A run for the present subscribers of a channel."""
    recipients = channel.recipients or channel.current_recipients()
    return channel, messages, recipients, iter(recipients)


class FanOutCounters(Protocol):
    """The counters that the fan-out adds to."""

    delivered: int
    discarded: int


class FanOut:
    """The delivery of one list of runs.

    While it awaits a `send`, it sets the attribute `idle` of that send queue itself. A pair of
    method calls for each delivery would be a tenth of its cost.

    Args:
        runs: in the order of the stream.
        congestion: the full backlogs of the hub's subscribers.
        counters: the fan-out counts "delivered" and "discarded".
    """

    def __init__(
        self, runs: Iterable[Run], congestion: Congestion, counters: FanOutCounters
    ) -> None:
        self._runs = iter(runs)
        self._congestion = congestion
        self._counters = counters
        self._run: Run | None = None
        # The present recipient and the messages of the run that it has not got yet.
        self._recipient: Recipient | None = None
        self._rest: Iterator[Delivery] = iter(())
        # The same for recipients that get the rest of the run after all other recipients.
        self._postponed: deque[tuple[Recipient, Iterator[Delivery]]] = deque()
        self._sending: SendQueue | None = None
        self._delivered = 0
        self._done = False

    async def run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver all runs.

        Returns when everything is delivered or queued, and only the backlogs of slow consumers are
        still full.
        """
        while not self._done:
            try:
                waiting = start(self._deliver(), loop)
            except asyncio.CancelledError:
                pass  # A `send` raised it. The other recipients still get the messages.
            else:
                if waiting is None:
                    self._counters.delivered += self._delivered
                    self._delivered = 0
                    if self._congestion.full:
                        await self._congestion.relieve()
                    elif not self._done:
                        await asyncio.sleep(0)
                    continue
                if self._sending is not None:
                    self._sending.wait_for(waiting)
                    # `_deliver` sees that another call of it has continued the fan-out.
                    self._sending = None
            self._postpone()

    def _remaining(self) -> Iterator[Run]:
        """The present run, which may not be finished, and the runs after it."""
        return self._runs if self._run is None else chain((self._run,), self._runs)

    def _postpone(self) -> None:
        """Deliver the rest of the run to the present recipient after the other recipients."""
        if self._recipient is not None:
            self._postponed.append((self._recipient, self._rest))

    async def _deliver(self) -> None:
        """Deliver until the end, until a backlog is full, for one turn, or until a `send` waits.

        In the last case, `run` calls it again at once, and this call ends after the `send`.
        """
        full = self._congestion.full  # The set itself: it changes while messages are delivered.
        left = TURN_DELIVERIES
        for run in self._remaining():
            self._run = run
            channel, messages, recipients, remaining = run
            for recipient in remaining:
                self._recipient = recipient
                self._rest = rest = iter(messages)
                for delivery in rest:
                    if (
                        not recipient.idle
                        or not recipient.direct
                        or delivery.origin is not None
                        or channel.recipients is not recipients
                    ):
                        _offer(channel, recipient.owner, delivery)
                        if full:
                            self._postpone()
                            break
                        continue
                    recipient.idle = False
                    self._sending = recipient
                    try:
                        await recipient.send(delivery.made or delivery.event())
                    except Exception as exc:
                        self._counters.discarded += 1
                        recipient.fail(exc)
                    except BaseException:
                        self._counters.discarded += 1
                        recipient.rest()
                        raise
                    if self._sending is not recipient:
                        recipient.rest()
                        return
                    recipient.idle = True
                    if recipient.behind:
                        recipient.rest()
                left -= len(messages)
                if left <= 0:
                    return
            if self._postponed:
                self._deliver_postponed(channel)
            if full:
                return
            self._delivered += len(messages) * len(recipients)
        self._done = True

    def _deliver_postponed(self, channel: Channel) -> None:
        """Offer the postponed messages until a backlog is full."""
        while self._postponed and not self._congestion.full:
            self._recipient, self._rest = recipient, rest = self._postponed.popleft()
            for delivery in rest:
                _offer(channel, recipient.owner, delivery)
                if self._congestion.full:
                    self._postpone()
                    break


def _offer(channel: Channel, subscriber: Subscriber, delivery: Delivery) -> None:
    """Call `on_delivery` of a subscriber that is still on the channel."""
    if not channel.has(subscriber):
        return
    try:
        subscriber.on_delivery(delivery)
    except Exception as exc:
        # The error of one subscriber must not keep the message from the others.
        text = "a subscriber failed to take a message on %r"
        key = whereabouts(exc)
        _failures.log(logging.ERROR, key, text, delivery.channel, exc_info=exc)
