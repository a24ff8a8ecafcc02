"""The fan-out: delivers the runs of a batch to all subscribers of their channels, in order.

A subscriber with an idle send queue gets the messages at once. Where the server takes prepared
frames, `write_frames` gives each connection all messages of a batch with one call. Elsewhere,
`FanOut` awaits the server's `send` for each message. Other subscribers get a message through
`on_delivery`. A subscriber whose client has to be waited for, or whose backlog is full, does not
delay the other subscribers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Protocol, TypeAlias

from ..log import LogThrottle, whereabouts
from ..url import BrokerOptions
from .channel import Channel, Recipient, Subscriber
from .eager import start
from .flow_control import Congestion
from .message import Delivery
from .run import Run
from .send_queue import SendQueue

__all__ = ["TURN_DELIVERIES", "FanOut", "FanOutCounters", "FrameWrites", "write_frames"]

logger = logging.getLogger("django_sockets")
_failures = LogThrottle(logger, BrokerOptions.log_interval_seconds, burst=5)

TURN_DELIVERIES = 1000
"""The number of deliveries, a few milliseconds of work, after which other tasks of the loop run.
Servers write their buffers then, and the memory of the buffers is reused."""


class FanOutCounters(Protocol):
    """The counters that the fan-out adds to."""

    delivered: int
    discarded: int


Unfinished: TypeAlias = tuple[Run, Iterator[Recipient]]
"""A run, and the subscribers that have not got it yet."""


def write_frames(runs: Sequence[Run], counters: FanOutCounters) -> FrameWrites | None:
    """Give each subscriber with an idle queue the frames of all runs, with one call.

    It never waits, and it runs no code of the application.

    Args:
        runs: in the order of the stream; together no more than one connection may get at a time.

    Returns:
        None if every subscriber has got all runs, else what is left to do.
    """
    if len(runs) > 1 or len(runs[0].recipients) > TURN_DELIVERIES:
        writes = FrameWrites(runs, counters)
        writes.collect()
        return None if writes.write() else writes
    # One run needs no collecting. See the row "one message at a time" of docs/benchmarks.
    run = runs[0]
    origin = run.origin
    others: list[Recipient] = []
    left_out = 0
    for recipient in run.recipients:
        if origin is not None and recipient.origin == origin:
            left_out += 1
            continue
        write = recipient.write
        if write is not None and recipient.idle and recipient.direct:
            try:
                if write(run.frames(recipient.window_bits)):
                    continue
            except Exception as exc:
                counters.discarded += len(run.messages)
                recipient.fail(exc)
                continue
        others.append(recipient)
    deliveries = len(run.messages) * (len(run.recipients) - left_out)
    if not others:
        counters.delivered += deliveries
        return None
    writes = FrameWrites(runs, counters)
    writes.complete, writes.deliveries = True, deliveries
    for recipient in others:
        writes.leave(0, recipient)
    return writes


class FrameWrites:
    """The writes of prepared frames for some runs: one for each connection.

    While `write` runs, no subscriber comes, leaves or changes.

    Args:
        runs: in the order of the stream.

    Attributes:
        complete: nothing is left to write.
        deliveries: the number of messages for all recipients.
    """

    __slots__ = (
        "_counters",
        "_others",
        "_position",
        "_queues",
        "_runs",
        "complete",
        "deliveries",
    )

    def __init__(self, runs: Sequence[Run], counters: FanOutCounters) -> None:
        self._runs = runs
        self._counters = counters
        self._queues: list[SendQueue] = []
        self._position = 0
        # For each run, the recipients that do not get it by a write; made when there is one.
        self._others: list[Sequence[Recipient]] | None = None
        self.complete = False
        self.deliveries = 0

    def collect(self) -> None:
        """Find the runs of each connection."""
        for number, run in enumerate(self._runs):
            origin = run.origin
            left_out = 0
            recipients = run.recipients
            if len(recipients) == 1 and recipients[0].write is None and origin is None:
                # No list for each message: see the row "reading a message" of docs/benchmarks.
                self._others = self._others or [()] * len(self._runs)
                self._others[number] = recipients
                self.deliveries += len(run.messages)
                continue
            for recipient in recipients:
                if origin is not None and recipient.origin == origin:
                    left_out += 1
                elif recipient.write is None or not recipient.idle or not recipient.direct:
                    self.leave(number, recipient)
                elif recipient.collected is None:
                    recipient.collected = run
                    self._queues.append(recipient)
                elif type(recipient.collected) is list:
                    recipient.collected.append(run)
                else:
                    recipient.collected = [recipient.collected, run]
            self.deliveries += len(run.messages) * (len(recipients) - left_out)

    def leave(self, number: int, recipient: Recipient) -> None:
        """Leave a recipient of a run to `FanOut`."""
        if self._others is None:
            self._others = [()] * len(self._runs)
        others = self._others[number]
        if not isinstance(others, list):
            others = self._others[number] = list(others)
        others.append(recipient)

    def write(self) -> bool:
        """Write to at most `TURN_DELIVERIES` connections.

        Returns:
            True if every recipient has got its runs.
        """
        begin = self._position
        self._position = end = begin + TURN_DELIVERIES
        try:
            for queue in self._queues[begin:end]:
                runs, queue.collected = queue.collected, None
                # After the first turn, the queue or the subscriptions may have changed.
                if not begin or _is_ready(queue, runs):
                    if type(runs) is list:
                        frames = b"".join([run.frames(queue.window_bits) for run in runs])
                    else:
                        frames = runs.frames(queue.window_bits)
                    try:
                        if queue.write(frames):  # type: ignore[misc]
                            continue
                    except Exception as exc:
                        self._counters.discarded += _messages(runs)
                        queue.fail(exc)
                        continue
                for run in runs if type(runs) is list else (runs,):
                    self.leave(self._runs.index(run), queue)
        except BaseException:
            self.abandon()
            raise
        self.complete = end >= len(self._queues)
        if not self.complete or self._others is not None:
            return False
        self._counters.delivered += self.deliveries
        return True

    def abandon(self) -> None:
        """Write nothing more, because the delivery has failed or was cancelled."""
        for queue in self._queues:
            queue.collected = None

    def unfinished(self) -> list[Unfinished]:
        """The runs that were not written to all their recipients."""
        if self._others is None:
            return []
        return [
            (run, iter(others))
            for run, others in zip(self._runs, self._others, strict=True)
            if others
        ]


def _is_ready(queue: SendQueue, runs: Run | list[Run]) -> bool:
    """A queue is still idle, and its owner is still on the channels of all its runs."""
    return (
        queue.idle
        and queue.direct
        and all(
            run.channel.recipients is run.recipients or run.channel.has(queue.owner)
            for run in (runs if isinstance(runs, list) else (runs,))
        )
    )


def _messages(runs: Run | list[Run]) -> int:
    return sum(len(run.messages) for run in (runs if isinstance(runs, list) else (runs,)))


class FanOut:
    """The delivery of runs to subscribers that take no prepared frames at this moment.

    While it awaits a `send`, it sets the attribute `idle` of that send queue itself. A pair of
    method calls for each delivery would be a tenth of its cost.

    Args:
        unfinished: in the order of the stream.
        congestion: the full backlogs of the hub's subscribers.
        counters: the fan-out counts "discarded".
    """

    def __init__(
        self, unfinished: Iterable[Unfinished], congestion: Congestion, counters: FanOutCounters
    ) -> None:
        self._runs = iter(unfinished)
        self._congestion = congestion
        self._counters = counters
        self._run: Unfinished | None = None
        # The present recipient and the messages of the run that it has not got yet.
        self._recipient: Recipient | None = None
        self._rest: Iterator[Delivery] = iter(())
        # The same for recipients that get the rest of the run after all other recipients.
        self._postponed: deque[tuple[Recipient, Iterator[Delivery]]] = deque()
        self._sending: SendQueue | None = None
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

    def _remaining(self) -> Iterator[Unfinished]:
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
        for unfinished in self._remaining():
            self._run = unfinished
            run, remaining = unfinished
            channel, messages, recipients = run.channel, run.messages, run.recipients
            for recipient in remaining:
                left -= len(messages)
                if recipient.write is not None and _put_whole(recipient, run):
                    continue
                self._recipient = recipient
                self._rest = rest = iter(messages)
                for delivery in rest:
                    if (
                        not recipient.idle
                        or not recipient.direct
                        or recipient.write is not None
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
                if left <= 0:
                    return
            if self._postponed:
                self._deliver_postponed(channel)
            if full:
                return
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


def _put_whole(queue: SendQueue, run: Run) -> bool:
    """Queue a whole run; True also if the subscriber has left the channel."""
    channel = run.channel
    if channel.recipients is not run.recipients and not channel.has(queue.owner):
        return True
    return queue.put_whole(run, run.size_bytes, len(run.messages))


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
        _failures.log(
            logging.ERROR,
            key,
            text,
            delivery.channel,
            exc_info=exc,
            extra={"channel": delivery.channel},
        )
