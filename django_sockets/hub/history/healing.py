"""The histories of the channels of one hub: heals them, and lets subscribers join in the past.

It reads channels behind their subscriptions (`SupportsHistory`), passes replies to the channels
(`kept_channel`), and renews the histories of quiet channels, so that their positions stay valid.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from ...broker import HANDED_OVER, Broker, HistoryItem, SupportsHistory
from ...delivery.batch import BatchObserver, Segment, read_batch
from ...delivery.channel import Channel, Subscriber
from ...delivery.send_queue import SendQueue
from ...errors import BrokerClosed, BrokerError
from ...history import HistoryReply, HistoryRule, Position, Recovery, Start
from ...log import LogThrottle
from ...url import BrokerURL
from ..subscriptions import LocalSubscriptions
from .durations import HealingDurations
from .joins import Join
from .kept_channel import KeptChannel
from .recent_reads import RecentReads
from .starts import NO_RECOVERY

__all__ = ["Healing", "KeepingBroker"]

logger = logging.getLogger("django_sockets")

RENEWED_AT_ONCE = 500
"""Channels that one command renews."""
LEAST_RENEWAL_SECONDS = 0.05
"""Minimum interval at which quiet channels are looked for."""


class KeepingBroker(Broker, SupportsHistory, Protocol):
    """A broker with history."""


class HealingOwner(BatchObserver, Protocol):
    """The hub, as its histories use it."""

    loop: asyncio.AbstractEventLoop
    subscriptions: LocalSubscriptions

    async def remove(self, subscriber: Subscriber, channels: Iterable[str] | None = None) -> None:
        """Unsubscribe from some channels, or from all."""

    @property
    def is_delivering(self) -> bool:
        """A batch is being delivered or waits for it."""

    async def deliver_with_history(self, batch: Sequence[HistoryItem]) -> None:
        """Deliver a batch; at once, unless `is_delivering`."""


class _Addition:
    """One call of `Healing.subscribe`.

    Attributes:
        joins: channel -> the join that this call waits for.
        new: the joins that this call made.
        first: the channels that nobody has subscribed to, and where to begin to read.
        later: the channels that are subscribed already, and have to be read.
    """

    def __init__(self) -> None:
        self.joins: dict[str, Join] = {}
        self.new: dict[str, Join] = {}
        self.first: dict[str, tuple[KeptChannel, Start]] = {}
        self.later: list[KeptChannel] = []


class Healing:
    """The histories of the subscribed channels of one hub.

    Args:
        owner: the hub.
        broker: keeps the messages.

    Attributes:
        channels: the subscribed channels with a rule, by name. Read only.
        rule_for: returns the history rule of a channel, or None.
    """

    def __init__(self, owner: HealingOwner, broker: KeepingBroker, url: BrokerURL) -> None:
        self._owner = owner
        self._broker = broker
        self.rule_for = lru_cache(maxsize=4096)(url.history.rule_for)
        self._url = url
        self.channels: dict[str, KeptChannel] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self._recent = RecentReads()
        self._durations = HealingDurations(url.scheme)

    # Subscribing

    def keeps_any(self, names: Iterable[str]) -> bool:
        """Whether one of these channels has a history rule."""
        return any(map(self.rule_for, names))

    async def subscribe(
        self,
        subscriber: Subscriber,
        names: Sequence[str],
        send_queue: SendQueue | None,
        starts: Mapping[str, Position | int],
    ) -> dict[str, Recovery]:
        """`Hub.add` for channels of which some have a rule."""
        subscriptions = self._owner.subscriptions
        addition = self._prepare(subscriber, names, send_queue, starts)
        call = subscriptions.request(subscriber, names, send_queue, addition.new)
        try:
            others = [name for name in names if name not in addition.first]
            if others:
                await self._broker.subscribe(others)
            for kept in addition.later:
                await self._serve(kept)
            if addition.first:
                first = {name: start for name, (_, start) in addition.first.items()}
                await self._broker.subscribe_with_history(first)
            answers = [join.answer for join in addition.joins.values()]
            if answers:
                await asyncio.wait(answers)
            recoveries = {name: join.answer.result() for name, join in addition.joins.items()}
        except BaseException:
            await self._owner.remove(subscriber, subscriptions.withdraw(subscriber, names, call))
            self._failed([kept for kept, _ in addition.first.values()])
            raise
        subscriptions.acknowledge(subscriber, names, call, time.monotonic())
        return {name: recoveries.get(name) or self._present(name) for name in names}

    def _prepare(
        self,
        subscriber: Subscriber,
        names: Sequence[str],
        send_queue: SendQueue | None,
        starts: Mapping[str, Position | int],
    ) -> _Addition:
        subscriptions = self._owner.subscriptions
        owned = subscriptions.channels_of(subscriber)
        addition = _Addition()
        for name in names:
            rule = self.rule_for(name)
            if rule is None:
                continue
            kept, start = self.channels.get(name), starts.get(name)
            if kept is not None and name in owned:
                join = kept.waiting_join(subscriber)
                if join is not None:
                    addition.joins[name] = join
                continue
            if kept is not None and start is None and not kept.reader.unplaced:
                continue  # It gets the live messages from now on.
            if kept is not None:
                addition.later.append(kept)
                addition.joins[name] = self._join(kept, subscriber, send_queue, start)
            else:
                kept = self._open(name, rule, subscriptions.opened(name))
                addition.joins[name] = self._join(kept, subscriber, send_queue, start)
                addition.first[name] = kept, kept.begin_read()[1]
            addition.new[name] = addition.joins[name]
        return addition

    def _present(self, name: str) -> Recovery:
        """The result of a subscription for which nothing was read."""
        kept = self.channels.get(name)
        position = None if kept is None else kept.reader.position
        return NO_RECOVERY if position is None else Recovery(position=str(position))

    def _open(self, name: str, rule: HistoryRule, channel: Channel) -> KeptChannel:
        kept = self.channels[name] = KeptChannel(name, rule, channel, self._recent)
        kept.renewed_at = time.monotonic()
        if self._renewing is None:
            self._renewing = self._owner.loop.create_task(
                self._renew(), name="django_sockets history renewal"
            )
        return kept

    def _join(
        self, kept: KeptChannel, subscriber: Subscriber, send_queue: SendQueue | None, start: Start
    ) -> Join:
        join = Join(subscriber, send_queue, start, self._owner.loop.create_future())
        kept.join(join)
        return join

    async def _serve(self, kept: KeptChannel) -> None:
        """Serve the joins of a subscribed channel from the last read, or begin the next one."""
        known = None if self._owner.is_delivering else kept.known_reply(time.monotonic())
        if known is None:
            self._read(kept)
        else:
            kept.begin_read()
            await self._owner.deliver_with_history([(kept.name, known)])

    def _read(self, kept: KeptChannel) -> None:
        """Begin the next read of a subscribed channel, if one is needed and none is open."""
        due, start = kept.begin_read()
        if due:
            self._broker.request_history(kept.name, start)

    def left(self, subscriber: Subscriber, names: Iterable[str], empty: Iterable[str]) -> None:
        """A subscriber has left channels.

        Args:
            empty: those that have no subscriber any more.
        """
        for name in names:
            if name in self.channels:
                self.channels[name].leave(subscriber)
        for name in empty:
            self.channels.pop(name, None)
            self._recent.discard(name)
            self._durations.forget(name)

    def _failed(self, first: Iterable[KeptChannel]) -> None:
        """The first subscription of these channels failed; others may still subscribe to them."""
        for kept in first:
            if self.channels.get(kept.name) is kept and kept.reading:
                kept.read_failed()
                self._read(kept)

    # The stream

    def missing(self, name: str) -> None:
        """Live messages of a channel are missing: read them."""
        kept = self.channels.get(name)
        if kept is not None:
            kept.reader.incomplete = False
            self._durations.begin(name)
            self._read(kept)

    def lost(self, names: Iterable[str], reason: str) -> list[str]:
        """The connection of these channels was lost.

        Returns:
            The channels that cannot be healed: signal a gap on them.
        """
        gone = []
        for name in names:
            kept = self.channels.get(name)
            if kept is None:
                gone.append(name)
                continue
            if kept.reader.lost(handed_over=reason == HANDED_OVER):
                self._durations.begin(name)
            else:
                gone.append(name)
            self._read(kept)
        return gone

    def renamed(self, names: Iterable[str], history_id: bytes) -> None:
        """See `HistorySink.history_renamed`."""
        for name in names:
            if name in self.channels:
                self.channels[name].reader.renamed(history_id)

    def read_batch(
        self,
        batch: Sequence[HistoryItem],
        channels: Mapping[str, Channel],
        arrived_at: float,
        observer: BatchObserver,
    ) -> list[Segment]:
        """`delivery.batch.read_batch` for a batch that may contain replies."""
        segments: list[Segment] = []
        live: list[tuple[str, bytes]] = []
        for name, item in batch:
            if not isinstance(item, HistoryReply):
                live.append((name, item))
                continue
            if live:
                segments += read_batch(live, channels, arrived_at, observer)
                live = []
            kept = self.channels.get(name)
            if kept is not None:
                taken = kept.take_reply(item, arrived_at, observer)
                segments += taken
                if not kept.reader.healing:
                    self._durations.end(name, taken)
                known = kept.known_reply(arrived_at)
                if known is not None:  # For joins that came while the read was open.
                    kept.begin_read()
                    segments += kept.take_reply(known, arrived_at, observer)
                if kept.continued is not None:
                    self._broker.request_history(name, kept.continued)
                else:
                    self._read(kept)
        if live or not segments:
            segments += read_batch(live, channels, arrived_at, observer)
        return segments

    def delivery_failed(self, batch: Iterable[tuple[str, object]]) -> None:
        """The delivery of a batch has failed: replies in it may not have been read."""
        for name, item in batch:
            kept = self.channels.get(name)
            if isinstance(item, HistoryReply) and kept is not None:
                if kept.reading:
                    kept.read_failed()
                kept.reader.abandon()
                self._durations.gap(name)
                self._read(kept)

    # Quiet channels

    async def _renew(self) -> None:
        """Read the histories of quiet channels, because the server removes unused ones."""
        while True:
            shortest = min((kept.rule.seconds for kept in self.channels.values()), default=1.0)
            await asyncio.sleep(max(LEAST_RENEWAL_SECONDS, min(shortest / 6, 60.0)))
            try:
                await self._renew_quiet(time.monotonic())
            except BrokerClosed:
                return
            except BrokerError as exc:
                text = "%s: cannot renew the history of quiet channels: %s"
                self._throttle.log(
                    logging.WARNING,
                    "renew",
                    text,
                    self._url,
                    exc,
                    extra={"broker": self._url, "reason": exc},
                )
            except Exception as exc:
                text = "%s: renewing the history of quiet channels failed"
                self._throttle.log(
                    logging.ERROR,
                    "renew",
                    text,
                    self._url,
                    exc_info=exc,
                    extra={"broker": self._url},
                )

    async def _renew_quiet(self, now: float) -> None:
        due = []
        for kept in list(self.channels.values()):
            tag = kept.reader.last_tag
            if kept.reader.refused and not kept.reading:
                kept.reader.unplaced = True
                self._read(kept)
            if tag != kept.seen:
                kept.seen, kept.renewed_at = tag, now
            elif now - kept.renewed_at >= kept.rule.seconds / 3 - LEAST_RENEWAL_SECONDS:
                due.append(kept)
        for first in range(0, len(due), RENEWED_AT_ONCE):
            part = due[first : first + RENEWED_AT_ONCE]
            names: dict[str, Start] = {kept.name: None for kept in part}
            replies = await self._broker.read_history(names)
            for kept in part:
                kept.renewed_at = now
                if self.channels.get(kept.name) is kept:
                    self._compare(kept, replies[kept.name].position)

    def _compare(self, kept: KeptChannel, newest: Position | None) -> None:
        """If the server has newer messages, find out on the subscribing connection."""
        here = kept.reader.position
        if newest is None or here is None or newest.epoch != here.epoch:
            return
        if newest.offset > here.offset and not kept.reading:
            kept.reader.unplaced = True
            self._read(kept)

    async def aclose(self) -> None:
        """End the renewals and all joins."""
        for kept in self.channels.values():
            kept.fail_joins(BrokerClosed(self._url))
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
