"""From the hub to its subscribers: messages, heard in order by everyone who is on their channel.

A message that nothing stands in the way of goes straight into a server's `send`. Everybody else is
asked to take it. Who has to wait for its client, or is full, does not hold up the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Protocol, TypeAlias, cast

from ..log import LogThrottle, whereabouts
from ..url import BrokerOptions
from .eager import start
from .flow_control import Congestion
from .message import Delivery
from .send_queue import SendQueue
from .sequence import Chain

__all__ = [
    "RUN_BYTES",
    "RUN_MESSAGES",
    "TURN_DELIVERIES",
    "Audience",
    "Piece",
    "Round",
    "Subscriber",
    "Topic",
]

logger = logging.getLogger("django_sockets")
_failures = LogThrottle(logger, BrokerOptions.log_interval_seconds, burst=5)

RUN_BYTES, RUN_MESSAGES = 32 * 1024, 256
"""What one socket gets in succession, before the others do: less than what servers take before they
let `send` wait, and a part of `TURN_DELIVERIES`."""

TURN_DELIVERIES = 1000
"""After so many, some milliseconds of work, everything else on the event loop has its turn. It is
also when a server writes what it was given: the memory of that is used again for what follows."""


class Subscriber(Protocol):
    """What the hub delivers to. Both are called on the hub's loop and must not wait."""

    def on_delivery(self, delivery: Delivery) -> None:
        """Take one message."""

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        """Messages on these channels may be missing before the next delivery."""


class _NoSendQueue:
    """In the place of a send queue, for a subscriber that has none and is asked each time."""

    __slots__ = ("owner",)

    idle = False

    def __init__(self, owner: Subscriber) -> None:
        self.owner = owner


Audience: TypeAlias = tuple[SendQueue, ...]
"""Where a message may go without asking the subscribers: it need not even look at them."""


class Topic(Chain, eq=False):
    """Who is on a channel, and what was seen of each publisher there.

    Attributes:
        audience: the send queues of its subscribers, in the order in which they subscribed and in
            which they get a message. None until it is needed, and again when that changes.
    """

    audience: Audience | None = None
    # A channel for one socket is the rule where there are many channels: it needs no dict.
    _only: SendQueue | None = None
    _send_queues: dict[Subscriber, SendQueue] | None = None

    def add(self, subscriber: Subscriber, direct: SendQueue | None) -> None:
        send_queue = direct or cast("SendQueue", _NoSendQueue(subscriber))
        self.audience = None
        if self._only is None and not self._send_queues:
            self._only = send_queue
            return
        if self._send_queues is None:
            self._send_queues = {}
        if self._only is not None:
            self._send_queues[self._only.owner] = self._only
            self._only = None
        self._send_queues[subscriber] = send_queue

    def remove(self, subscriber: Subscriber) -> None:
        self.audience = None
        if self._only is not None:
            self._only = None
        elif self._send_queues is not None:
            del self._send_queues[subscriber]

    @property
    def empty(self) -> bool:
        return self._only is None and not self._send_queues

    def has(self, subscriber: Subscriber) -> bool:
        """Whether a subscriber is on it."""
        if self._only is not None:
            return self._only.owner is subscriber
        return self._send_queues is not None and subscriber in self._send_queues

    def present(self) -> Audience:
        """The send queues of who is on it now: the audience."""
        if self.audience is None:
            only = self._only
            self.audience = tuple((self._send_queues or {}).values()) if only is None else (only,)
        return self.audience

    def piece(self, run: list[Delivery]) -> Piece:
        """Messages on this channel, for those who are on it now."""
        audience = self.audience or self.present()
        return self, run, audience, iter(audience)


Piece: TypeAlias = tuple[Topic, list[Delivery], Audience, Iterator[SendQueue]]
"""A part of a batch: a run of messages on one channel; who was on that channel when it was made;
and who of them has not got it yet.

A run goes to one subscriber after the other: the kernel takes what is written to one connection in
succession for less than half.
"""


class Round:
    """A batch on its way.

    Args:
        pieces: of the batch; they may be made while those before them are handed out.
        congestion: the full backlogs of the subscribers.
        counters: "delivered" and "discarded" are counted here.
    """

    def __init__(
        self, pieces: Iterator[Piece], congestion: Congestion, counters: Counter[str]
    ) -> None:
        self._pieces = pieces
        self._congestion = congestion
        self._counters = counters
        self._piece: Piece | None = None
        # Who gets it now, and what it is still to get of the run; then the same of those who would
        # have held up the others.
        self._send_queue: SendQueue | None = None
        self._rest: Iterator[Delivery] = iter(())
        self._behind: deque[tuple[SendQueue, Iterator[Delivery]]] = deque()
        # Whose `send` is awaited.
        self._sending: SendQueue | None = None
        self._delivered = 0
        self._done = False

    async def run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand everything out; returns when it is, and nobody's backlog is full but of the slow."""
        while not self._done:
            try:
                waiting = start(self._hand_out(), loop)
            except asyncio.CancelledError:
                pass  # A `send` said so of itself; the others are still to come.
            else:
                if waiting is None:
                    self._counters["delivered"] += self._delivered
                    self._delivered = 0
                    if self._congestion.full:
                        await self._congestion.relieve()
                    elif not self._done:
                        await asyncio.sleep(0)
                    continue
                if self._sending is not None:
                    self._sending.wait_for(waiting)
                    self._sending = None  # That is how it knows that the others went on without it.
            self._hold_back()

    def _left(self) -> Iterator[Piece]:
        """The present piece, which may not be done, and those to come."""
        return self._pieces if self._piece is None else chain((self._piece,), self._pieces)

    def _hold_back(self) -> None:
        """Let the present subscriber have the rest of the run when the others have got it."""
        if self._send_queue is not None:
            self._behind.append((self._send_queue, self._rest))

    async def _hand_out(self) -> None:
        """Go on: to the end, to congestion, for one turn, or until a `send` has to wait.

        In the last case the round is no longer this coroutine's when it comes back.
        """
        congested = self._congestion.full
        left = TURN_DELIVERIES
        for piece in self._left():
            self._piece = piece
            topic, run, audience, coming = piece
            for send_queue in coming:
                self._send_queue = send_queue
                self._rest = rest = iter(run)
                for delivery in rest:
                    if (
                        not send_queue.idle
                        or not send_queue.direct
                        or delivery.origin is not None
                        or topic.audience is not audience
                    ):
                        _offer(topic, send_queue.owner, delivery)
                        if congested:
                            self._hold_back()
                            break
                        continue
                    send_queue.idle = False
                    self._sending = send_queue
                    try:
                        await send_queue.send(delivery.made or delivery.event())
                    except Exception as exc:
                        self._counters["discarded"] += 1
                        send_queue.fail(exc)
                    except BaseException:
                        self._counters["discarded"] += 1
                        send_queue.rest()
                        raise
                    if self._sending is not send_queue:
                        send_queue.rest()
                        return
                    send_queue.idle = True
                    if send_queue.behind:
                        send_queue.rest()
                left -= len(run)
                if left <= 0:
                    return
            if self._behind:
                self._catch_up(topic)
            if congested:
                return
            self._delivered += len(run) * len(audience)
        self._done = True

    def _catch_up(self, topic: Topic) -> None:
        """Offer what was held back, as long as nobody is full."""
        while self._behind and not self._congestion.full:
            self._send_queue, self._rest = send_queue, rest = self._behind.popleft()
            for delivery in rest:
                _offer(topic, send_queue.owner, delivery)
                if self._congestion.full:
                    self._hold_back()
                    break


def _offer(topic: Topic, subscriber: Subscriber, delivery: Delivery) -> None:
    """Give a subscriber a message by `on_delivery`, if it is still there."""
    if not topic.has(subscriber):
        return
    try:
        subscriber.on_delivery(delivery)
    except Exception as exc:
        # One subscriber's trouble is nobody else's.
        text = "a subscriber failed to take a message on %r"
        key = whereabouts(exc)
        _failures.log(logging.ERROR, key, text, delivery.channel, exc_info=exc)
