"""The hub: one broker on one event loop, shared by all local subscribers.

The hub adds the envelope to each payload and keeps the local subscribers of each channel. It
subscribes to a channel at the broker for the first local subscriber, and unsubscribes after the
last one. It drops late and repeated messages, and signals a gap where messages may be missing.

Sockets are subscribers like any other. `connections` holds the sockets for `drain`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
    Set,
)
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast, overload

from ..broker import HistoryItem, SupportsHistory, SupportsQueue
from ..conf import Config, Source, load_config
from ..delivery.batch import GapBefore
from ..delivery.channel import Subscriber
from ..delivery.events import HISTORY, MISSED, EventQueue, Events
from ..delivery.flow_control import Congestion
from ..delivery.hold import HoldTimer
from ..delivery.send_queue import SendQueue
from ..errors import BrokerClosed
from ..history import Position, Recovery
from ..log import LogThrottle
from ..loops import forget_closed
from ..observer import GapSignalled, seam
from ..redaction import frameless
from .batches import Batch, BatchDelivery
from .connections import Connections
from .history.pages import HistoryPage, HistoryPages
from .history.starts import NO_RECOVERY, starts_of
from .process import per_process, register
from .publishing import CONTROL
from .queues import Queues
from .stats import HubStats
from .subscriptions import LocalSubscriptions
from .survey.listener import SurveyListener
from .tracking import PresenceCalls

if TYPE_CHECKING:
    from ..delivery.channel import PresenceSubscriber
    from .history.healing import Healing, KeepingBroker

__all__ = ["CONTROL", "Hub", "Subscriber", "hub_on", "open_hub"]

logger = logging.getLogger("django_sockets")


class Hub(PresenceCalls):
    """One broker on one event loop. `open_hub` makes it.

    Call its methods on that loop only, except `stats`.

    Attributes:
        config: its configuration.
        loop: its event loop.
        closed: `aclose` was called.
        deliver_now: delivers a batch without a task where nothing has to wait; see
            `broker.EagerSink`.
        congestion: the full backlogs of its subscribers.
        connections: the sockets of a server that use this hub.
        counters: the counters of `stats`.
        holds: the timer for broadcasts that wait for the end of `connect`.
        max_payload_bytes: the largest payload of `publish`.
        queues: the queues of the broker, or None if it has none.
        subscriptions: its local subscribers by channel. Read only.
        surveys: answers the surveys of operators.
        threads: lets threads publish without the event loop; None if the broker cannot.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.congestion = Congestion()
        self.surveys = SurveyListener(self, self._publish_internal)
        self.connections = Connections(self.surveys.connections_changed)
        self.loop = asyncio.get_running_loop()
        self.holds = HoldTimer(self.loop)
        self._options = config.url.options
        self.subscriptions = LocalSubscriptions(self._options.publishers_remembered)
        self._throttle = LogThrottle(logger, self._options.log_interval_seconds)
        self._delivery = BatchDelivery(self, self.subscriptions.channels, config.url.scheme)
        self.deliver_now = self._delivery.deliver_now
        self._publish_with(config.open_broker(config.url, self))
        self._healing: Healing | None = None
        if config.url.history and isinstance(self._broker, SupportsHistory):
            from .history.healing import Healing  # Other hubs do not load it.

            self._healing = Healing(self, cast("KeepingBroker", self._broker), config.url)
        self.queues = Queues(self._broker) if isinstance(self._broker, SupportsQueue) else None
        self._pages = HistoryPages(self._broker, config.url)
        register(self, self.counters, config.url.scheme)

    # History

    async def history(
        self, channel: str, since: str | None = None, limit: int = 100
    ) -> HistoryPage:
        """Read kept messages of a channel that has a rule in the setting `history`.

        Args:
            since: a position: the oldest messages behind it. None: the newest messages.
            limit: the most messages, 1 to 10,000. A page also ends after 16 MiB.

        Returns:
            The messages, the oldest first, and the position behind them.

        Raises:
            ChannelError: the name is not valid, or the channel has no rule.
            PositionError: `since` is not the text of a position.
            ConfigurationError: `limit` is out of range, or the broker has no history.
            HistoryError: the server did not answer, or refused.
            BrokerClosed: after `aclose`.
        """
        (name,) = self.names_while_open([channel])
        return await self._pages.read(name, since, limit)

    @overload
    async def position(self, channel: str) -> str: ...
    @overload
    async def position(
        self, channel: list[str] | tuple[str, ...] | set[str] | frozenset[str]
    ) -> dict[str, str]: ...
    async def position(
        self, channel: str | list[str] | tuple[str, ...] | set[str] | frozenset[str]
    ) -> str | dict[str, str]:
        """The place behind the newest message of a channel, also before its first message.

        Read it before the state that you send to a client. A subscription with `since=position`
        then gets every change that the state does not have.

        Args:
            channel: one channel, or a list, tuple or set of them, which costs one round trip per
                server.

        Returns:
            The position of one channel; for several, a dict of channel -> position.

        Raises:
            ChannelError, ConfigurationError, HistoryError, BrokerClosed: see `history`.
        """
        names = self.names_while_open(channel)
        found = await self._pages.newest(names)
        return found[names[0]] if isinstance(channel, str) else found

    # Subscribing

    @contextlib.asynccontextmanager
    async def subscribe(
        self,
        *channels: str,
        since: str | Mapping[str, str] | None = None,
        replay: int = 0,
        presence: bool | Collection[str] = False,
    ) -> AsyncIterator[Events]:
        """Subscribe within an `async with`. On entry, the server has acknowledged the channels.

        Args:
            since, replay, presence: see `add`.

        Yields:
            An async iterator of `Message`, `Gap` and, with `presence`, `Presence`. Its
            `recoveries` are the result of `add`.

        Raises:
            ChannelError, PositionError, ValueError, SubscribeError: nothing is subscribed.
            ConfigurationError: see `add`.
        """
        events = Events(*self._queue_limits())
        adding = self.add(events, channels, since=since, replay=replay, presence=presence)
        events.recoveries = await adding
        try:
            yield events
        finally:
            events.close()
            await self.remove(events)

    def new_queue(self) -> EventQueue:
        """A queue to subscribe with `add`."""
        return EventQueue(*self._queue_limits())

    def _queue_limits(self) -> tuple[int, int, Congestion, Callable[[str], None]]:
        size = self._options.events_queue_size
        return size, self.max_payload_bytes, self.congestion, self.count_gap

    def add(
        self,
        subscriber: Subscriber,
        channels: str | Iterable[str],
        *,
        direct: SendQueue | None = None,
        since: str | Mapping[str, str] | None = None,
        replay: int = 0,
        presence: bool | Collection[str] = False,
    ) -> Coroutine[Any, Any, dict[str, Recovery]]:
        """Subscribe a local subscriber, and await the server's acknowledgement of every channel.

        With `since` or `replay`, the subscriber alone first gets messages from the history, and
        then the live messages; none is missing or repeated in between. If the history does not have
        every message behind a position any more, the subscriber first gets a gap with the reason
        "history". It also gets this gap if the channel has no history rule.

        Args:
            channels: one name, or several.
            direct: while this queue is idle, it gets the events instead of `on_delivery`.
            since: the position of the last message that the subscriber has, from
                `Message.position` or `Recovery.position`. A str for all channels of the call, or a
                mapping of channel to position.
            replay: the number of latest messages to get, on channels without a position; at most
                as many as are kept. 0 for none.
            presence: True, or some of the channels: the subscriber, which must be a
                `PresenceSubscriber`, also gets the changes of the members of the channels
                (`on_presence`), in the order of the stream. `Recovery.presence` has the members
                before the first change. A later call adds this to an existing subscription.

        Returns:
            The result of each channel.

        Raises:
            ChannelError, SubscribeError: the subscriber is on none of the new channels.
            PositionError: `since` has a text that is not a position.
            ValueError: `replay` is negative.
            ConfigurationError: the broker has no presence.
            BrokerClosed: after `aclose`.
        """
        names = self.check_channels(channels)
        if presence:
            watched = names if presence is True else [name for name in names if name in presence]
            return self._add_watching(subscriber, names, direct, since, replay, watched)
        healing = self._healing
        if since is None and not replay and (healing is None or not healing.keeps_any(names)):
            return self._add(subscriber, names, direct)
        return self._add_behind(subscriber, names, direct, starts_of(names, since, replay))

    async def _add_watching(
        self,
        subscriber: Subscriber,
        names: list[str],
        direct: SendQueue | None,
        since: str | Mapping[str, str] | None,
        replay: int,
        watched: list[str],
    ) -> dict[str, Recovery]:
        """`add` with presence on some of the channels."""
        presence = self._open_presence()
        new = [name for name in names if name not in self.channels_of(subscriber)]
        recoveries = await self.add(subscriber, names, direct=direct, since=since, replay=replay)
        try:
            members = await presence.watch(cast("PresenceSubscriber", subscriber), watched)
        except BaseException:
            await self.remove(subscriber, new)
            raise
        for name in watched:
            recoveries[name] = replace(recoveries[name], presence=members[name])
        return recoveries

    async def add_control(self, subscriber: Subscriber) -> None:
        """Subscribe to the control channel; `remove` ends it. Raises the same errors as `add`."""
        await self.add_internal(subscriber, CONTROL)

    async def add_internal(self, subscriber: Subscriber, channel: str) -> None:
        """`add_control` for another of the library's own channels."""
        await self._add(subscriber, [channel])

    async def _add(
        self, subscriber: Subscriber, names: list[str], direct: SendQueue | None = None
    ) -> dict[str, Recovery]:
        if self.closed:
            raise BrokerClosed(self.config.url)
        if not names:
            return {}
        subscriptions = self.subscriptions
        call = subscriptions.request(subscriber, names, direct)
        try:
            await self._broker.subscribe(names)
        except BaseException:
            await self.remove(subscriber, subscriptions.withdraw(subscriber, names, call))
            raise
        subscriptions.acknowledge(subscriber, names, call, time.monotonic())
        return dict.fromkeys(names, NO_RECOVERY)

    async def _add_behind(
        self,
        subscriber: Subscriber,
        names: list[str],
        direct: SendQueue | None,
        starts: Mapping[str, Position | int],
    ) -> dict[str, Recovery]:
        """`_add` for channels with a rule, or with a place in the past."""
        healing = self._healing
        if healing is None or not healing.keeps_any(names):
            recoveries = await self._add(subscriber, names, direct)
        elif self.closed:
            raise BrokerClosed(self.config.url)
        else:
            recoveries = await healing.subscribe(subscriber, names, direct, starts)
            starts = {name: start for name, start in starts.items() if not healing.rule_for(name)}
        # Without a rule, nothing was kept that could be replayed.
        broken = [name for name, start in starts.items() if isinstance(start, Position)]
        if broken:
            self._tell_gap(subscriber, broken, HISTORY)
        return recoveries

    async def remove(self, subscriber: Subscriber, channels: Iterable[str] | None = None) -> None:
        """Unsubscribe from some channels, or from all. The subscriber gets nothing more of them."""
        if self._presence is not None:
            gone = list(self.channels_of(subscriber) if channels is None else channels)
            self._presence.unwatch(cast("PresenceSubscriber", subscriber), gone)
        if self._healing is None:
            empty = self.subscriptions.remove(subscriber, channels)
        else:
            gone = list(self.channels_of(subscriber) if channels is None else channels)
            empty = self.subscriptions.remove(subscriber, gone)
            self._healing.left(subscriber, gone, empty)
        if empty and not self.closed:
            await self._broker.unsubscribe(empty)

    def channels_of(self, subscriber: Subscriber) -> Set[str]:
        """A live view of the channels of a subscriber."""
        return self.subscriptions.channels_of(subscriber)

    # Receiving (`broker.Sink`)

    async def deliver(self, batch: Batch) -> None:
        """Deliver a batch of messages to the local subscribers, in the order of the batch."""
        waiting = self.deliver_now(batch)
        if waiting is not None:
            await waiting

    @property
    def is_delivering(self) -> bool:
        """A batch is being delivered, or waits for it."""
        return self._delivery.is_busy

    async def deliver_with_history(self, batch: Sequence[HistoryItem]) -> None:
        """See `HistorySink`."""
        if self._healing is not None:
            items = cast("Batch", batch)  # `read_batch` of the histories takes replies, too.
            waiting = self._delivery.deliver_now(items, self._healing.read_batch)
            if waiting is not None:
                await waiting

    def history_renamed(self, channels: Sequence[str], history_id: bytes) -> None:
        """See `HistorySink`."""
        if self._healing is not None:
            self._healing.renamed(channels, history_id)

    def missing(self, channel: str) -> None:
        """Read messages of a channel that are missing before a live one."""
        if self._healing is not None:
            self._healing.missing(channel)

    def signal(self, gap: GapBefore) -> None:
        """Signal a gap of a batch to the subscribers that have not left the channel meanwhile."""
        recipients = gap.recipients
        if recipients is None:
            recipients = gap.channel.current_recipients()
        for recipient in recipients:
            if gap.channel.has(recipient.owner):
                self._tell_gap(recipient.owner, [gap.name], gap.reason)

    def delivery_failed(self, batch: Batch, exc: Exception | None) -> None:
        """Signal a gap: the trackers have seen messages that not every subscriber has got."""
        if exc is not None:
            text = "%s: delivering messages failed"
            self._throttle.log(
                logging.ERROR,
                "deliver",
                text,
                self.config.url,
                exc_info=exc,
                extra={"broker": self.config.url},
            )
        self._lost(list(dict.fromkeys(channel for channel, _ in batch)), MISSED)
        if self._healing is not None:
            self._healing.delivery_failed(batch)

    def lost(self, channels: Sequence[str], reason: str) -> None:
        """The broker has lost messages: heal the channels with a history, or signal a gap."""
        if self._healing is not None:
            channels = self._healing.lost(channels, reason)
        self._lost(channels, reason)

    def _lost(self, channels: Sequence[str], reason: str) -> None:
        known = [channel for channel in channels if channel in self.subscriptions.channels]
        now = time.monotonic()
        for channel in known:
            self.subscriptions.channels[channel].gap_signalled(now)
        self._gap(known, reason)

    def _gap(self, channels: Sequence[str], reason: str) -> None:
        affected: dict[Subscriber, list[str]] = {}
        for channel in channels:
            for recipient in self.subscriptions.channels[channel].current_recipients():
                affected.setdefault(recipient.owner, []).append(channel)
        for subscriber, names in affected.items():
            self._tell_gap(subscriber, names, reason)

    def _tell_gap(self, subscriber: Subscriber, names: Sequence[str], reason: str) -> None:
        self.count_gap(reason)
        try:
            subscriber.on_gap(names, reason)
        except Exception as exc:
            text = "%s: a subscriber failed to handle a gap"
            self._throttle.log(
                logging.ERROR,
                "on_gap",
                text,
                self.config.url,
                exc_info=exc,
                extra={"broker": self.config.url},
            )

    def count(self, counter: str, count: int = 1) -> None:
        """Add to a counter of `Counters`, by its name."""
        self.counters.add(counter, count)

    def count_gap(self, reason: str) -> None:
        """Count one gap signalled to one subscriber."""
        self.counters.count_gap(reason)
        if (observer := seam.observer) is not None:
            observer.gap_signalled(GapSignalled(broker=self.config.url.scheme, reason=reason))
        self._throttle.log(
            logging.INFO,
            f"gap {reason}",
            "gap signalled: %s",
            reason,
            extra={"broker": self.config.url, "reason": reason},
        )

    def late(self) -> None:
        """Count a message that is dropped as repeated or late."""
        self.counters.dropped_late += 1

    def poison(self, channel: str) -> None:
        """Count and log a skipped payload that no django_sockets process published."""
        self.counters.poison += 1
        self._throttle.log(
            logging.WARNING,
            "poison",
            "%s: skipped a payload on channel %r that no django_sockets process published",
            self.config.url,
            channel,
            extra={"broker": self.config.url, "channel": channel},
        )

    # Statistics and closing

    def stats(self) -> HubStats:
        """The counters since the hub was opened, and the present numbers of what it holds.

        You may call it on any thread. It takes no lock and does not delay the event loop. The
        counters are read one after the other while they may change, so two of them may differ by a
        batch that is being delivered.
        """
        numbers = {
            **self.counters.as_dict(),
            **self.connections.stats(),
            "channels": len(self.subscriptions.channels),
            "subscribers": len(self.subscriptions.subscribers),
            **self._presence_stats(),
        }
        return cast("HubStats", numbers)

    async def drain(self, seconds: float | None = None) -> int:
        """Close all sockets with 1012, spread over a time, and then the broker.

        Each close waits for the running handler of the socket. `disconnect` runs as usual. New
        handshakes are refused with 503. `django_sockets.drain` drains all hubs of a loop.

        Args:
            seconds: the time; None for the setting `drain_seconds`.

        Returns:
            The number of sockets whose handler did not return in time. The hub stays open if it is
            not 0.
        """
        if seconds is None:
            seconds = self.config.settings.drain_window_seconds
        left = await self.connections.drain(seconds)
        if left:
            logger.warning(
                "draining: %d sockets did not end within %g s",
                left,
                seconds,
                extra={"count": left, "seconds": seconds},
            )
        else:
            await self.aclose()
        return left

    async def aclose(self) -> None:
        """Close the broker. Idempotent. Subscribers get nothing more, and open iterators end."""
        if self.closed:
            return
        self.closed = True
        _forget(self)
        await self.surveys.aclose()
        for subscriber in list(self.subscriptions.subscribers):
            if isinstance(subscriber, EventQueue):
                subscriber.close()
        if self._presence is not None:
            await self._presence.aclose()
        if self._healing is not None:
            await self._healing.aclose()
        await self._broker.aclose()

    async def __aenter__(self) -> Hub:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


@frameless
def open_hub(source: Source | None = None) -> Hub:
    """Open a hub on the running event loop; use it as `async with open_hub(url) as hub:`.

    The hub connects when it is first needed. Until it is closed, all other publishers on this loop
    with the same configuration use it, too.

    Args:
        source: a URL; None for Django's setting, the environment variable, or memory://.

    Raises:
        ConfigurationError: the URL is wrong.
        RuntimeError: no event loop is running.
    """
    hub = Hub(load_config(source))
    hubs = per_process.current.by_loop
    forget_closed(hubs)
    hubs.setdefault(hub.loop, []).append(hub)
    return hub


def hub_on(loop: asyncio.AbstractEventLoop, config: Config) -> Hub | None:
    """The open hub of a loop for a configuration, or None."""
    return next(
        (hub for hub in per_process.current.by_loop.get(loop, ()) if hub.config == config), None
    )


def _forget(hub: Hub) -> None:
    hubs = per_process.current.by_loop.get(hub.loop, [])
    if hub in hubs:
        hubs.remove(hub)
