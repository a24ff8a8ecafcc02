"""The hub: one broker on one event loop, shared by every local subscriber.

It wraps each payload in the envelope, keeps `channel -> local subscribers`, subscribes at the
broker for the first local subscriber of a channel and unsubscribes after the last, drops what
comes late or twice, and signals a gap wherever something may be missing. It knows no sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence, Set
from itertools import chain

from ..broker import check_channel
from ..conf import Config, Source, load_config
from ..delivery.envelope import HEADER_BYTES, NewerVersion, NotOurs, Publisher, unpack
from ..delivery.events import LATE, MISSED, VERSION, EventQueue, Events
from ..delivery.fanout import RUN_BYTES, RUN_MESSAGES, Piece, Round, Subscriber, Topic
from ..delivery.flow_control import Congestion
from ..delivery.hold import HoldTimer
from ..delivery.message import Delivery
from ..delivery.send_queue import SendQueue
from ..delivery.sequence import Chain, Memory
from ..errors import BrokerClosed, PayloadTooLarge
from ..log import LogThrottle
from ..loops import forget_closed
from ..redaction import frameless
from ..registry import open_broker
from .connections import Connections

__all__ = ["CONTROL", "Hub", "Subscriber", "hub_on", "open_hub"]

logger = logging.getLogger("django_sockets")

CONTROL = "\x01control"
"""The channel of orders between our own processes: `check_channel` lets no user utter it."""
_ORDERS: list[str] = []
"""In its place as an argument: this very object, which nobody else has."""
_NO_CHANNELS: dict[str, tuple[object, ...]] = {}

COUNTERS = (
    "published",
    "publish_errors",
    "delivered",
    "dropped_late",
    "gaps",
    "poison",
    "dropped_overflow",
    "discarded",
    "closed_overflow",
    "closed_too_big",
    "closed_rate_limit",
    "closed_idle",
    "closed_drain",
    "handshake_timeouts",
    "refused_draining",
)
"""What `Hub.stats` counts; docs/limits.md says what each means."""


PIECES_AHEAD = 32
"""Pieces of a batch that are made before the first of them is handed out: what makes one is in the
processor's caches then for the next."""

DELIVER = Chain.DELIVER
NEWER = -1
"""Beside the verdicts of a `Chain`: the message is for newer readers."""

taps: list[Callable[[Sequence[str], bytes, bool], Sequence[str]]] = []
"""For tests: called with the channels, payload and `is_text` of every publish of the process,
before it is made; each returns the channels that it shall still go to."""


class Hub:
    """One broker on one event loop. Made by `open_hub`; every method belongs to that loop.

    Attributes:
        config: what it was opened with.
        closed: `aclose` was called.
        congestion: the full backlogs of its subscribers.
        connections: the sockets that a server serves with it.
        holds: the broadcasts that wait for a `connect`.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.congestion = Congestion()
        self.connections = Connections()
        self.loop = asyncio.get_running_loop()
        self.holds = HoldTimer(self.loop)
        self._options = config.url.options
        self._topics: dict[str, Topic] = {}
        self._memory = Memory(self._options.publishers_remembered, self._topics)
        # With the calls that wait for a channel which none of the subscriber's calls has got yet.
        # The garbage collector passes over a dict of nothing but texts and empty tuples.
        self._channels_of: dict[Subscriber, dict[str, tuple[object, ...]]] = {}
        self._publisher = Publisher(self._options.channels_remembered)
        self._counters: Counter[str] = Counter()
        self._throttle = LogThrottle(logger, self._options.log_interval_seconds)
        self.closed = False
        self._handing_out = asyncio.Lock()
        self._broker = (config.broker_factory or open_broker)(config.url, self)
        limits = self._broker.limits
        self.max_payload_bytes = min(
            self._options.max_payload_bytes, limits.max_payload_bytes - HEADER_BYTES - 64
        )
        self._max_channel_bytes = limits.max_channel_bytes

    # Publishing

    async def publish(
        self,
        channels: str | Iterable[str],
        payload: bytes,
        *,
        is_text: bool = False,
        origin: bytes | None = None,
    ) -> None:
        """Publish one payload to 1..n channels.

        Messages of this hub on one channel arrive in the order in which `publish` was called. A
        cancelled call may or may not have published.

        Args:
            channels: one name, or several; a name that stands twice counts once.
            payload: at most `max_payload_bytes`.
            is_text: the payload is JSON text in UTF-8, for sockets to send as a text frame.
            origin: id of a socket that must not get it.

        Raises:
            ChannelError, PayloadTooLarge: nothing was published.
            PublishError: it did not certainly reach the server for every channel.
        """
        names = self.check_channels(channels)
        size = len(payload)
        if size > self.max_payload_bytes:
            raise PayloadTooLarge(size, self.max_payload_bytes)
        if self.closed:
            raise BrokerClosed(self.config.url)
        for tap in tuple(taps):
            names = list(tap(names, payload, is_text))
        if not names:
            return
        headers = self._publisher.headers(names, is_text, origin)
        self._counters["published"] += len(names)
        try:
            await self._broker.publish(names, payload, headers)
        except Exception:
            self._counters["publish_errors"] += 1
            raise

    async def publish_control(self, payload: bytes) -> None:
        """Publish JSON text on the control channel; raises as `publish` does."""
        await self.publish(_ORDERS, payload, is_text=True)

    def check_channels(self, channels: str | Iterable[str]) -> list[str]:
        """The valid channel names in `channels`, each once.

        Raises:
            ChannelError: one of them cannot be used.
        """
        most = self._max_channel_bytes
        if isinstance(channels, list) and len(channels) == 1:  # By far the most calls.
            return [check_channel(channels[0], most)]
        if channels is _ORDERS:
            return [CONTROL]
        if isinstance(channels, (str, bytes)) or not isinstance(channels, Iterable):
            return [check_channel(channels, most)]
        return list(dict.fromkeys(check_channel(channel, most) for channel in channels))

    # Subscribing

    @contextlib.asynccontextmanager
    async def subscribe(self, *channels: str) -> AsyncIterator[Events]:
        """Subscribe for the length of an `async with`; acknowledged on entry.

        Yields:
            An async iterator of `Message` and `Gap`.

        Raises:
            ChannelError, SubscribeError: nothing is subscribed.
        """
        events = Events(*self._queue_limits())
        await self.add(events, channels)
        try:
            yield events
        finally:
            events.close()
            await self.remove(events)

    def new_queue(self) -> EventQueue:
        """A queue to be subscribed with `add`."""
        return EventQueue(*self._queue_limits())

    def _queue_limits(self) -> tuple[int, int, Congestion, Callable[[str], None]]:
        size = self._options.events_queue_size
        return size, self.max_payload_bytes, self.congestion, self.count_gap

    async def add(
        self,
        subscriber: Subscriber,
        channels: str | Iterable[str],
        *,
        direct: SendQueue | None = None,
    ) -> None:
        """Subscribe a local subscriber; returns once the server has acknowledged every channel.

        Args:
            channels: one name, or several.
            direct: takes the event of a delivery in place of `on_delivery`, when it is idle.

        Raises:
            ChannelError, SubscribeError: the subscriber has none of the new channels.
        """
        names = self.check_channels(channels)
        if self.closed:
            raise BrokerClosed(self.config.url)
        if not names:
            return
        owned = self._channels_of.setdefault(subscriber, {})
        call = object()
        for name in names:
            if name in owned:
                if owned[name]:
                    owned[name] += (call,)
                continue
            topic = self._topics.get(name)
            if topic is None:
                topic = self._topics[name] = Topic(self._memory)
            topic.add(subscriber, direct)
            owned[name] = (call,)
        try:
            await self._broker.subscribe(names)
        except BaseException:
            # Not what another call of the subscriber's has got, or still waits for.
            gone = []
            for name in names:
                calls = owned.get(name, ())
                if call in calls:
                    owned[name] = tuple(other for other in calls if other is not call)
                    if not owned[name]:
                        gone.append(name)
            await self.remove(subscriber, gone)
            raise
        now = time.monotonic()
        for name in names:
            if call in owned.get(name, ()):
                owned[name] = ()
                self._topics[name].acknowledged(now)

    async def add_control(self, subscriber: Subscriber) -> None:
        """`add` to the control channel; `remove` ends it."""
        await self.add(subscriber, _ORDERS)

    async def remove(self, subscriber: Subscriber, channels: Iterable[str] | None = None) -> None:
        """Take a subscriber off some channels, or off all; it hears nothing more from now on."""
        owned = self._channels_of.get(subscriber, {})
        gone = list(owned) if channels is None else [name for name in channels if name in owned]
        empty = []
        for name in gone:
            owned.pop(name, None)
            topic = self._topics[name]
            topic.remove(subscriber)
            if topic.empty:
                del self._topics[name]
                empty.append(name)
        if not owned:
            self._channels_of.pop(subscriber, None)
        if empty and not self.closed:
            await self._broker.unsubscribe(empty)

    def channels_of(self, subscriber: Subscriber) -> Set[str]:
        """The channels a subscriber is on, as they are now and later."""
        return self._channels_of.get(subscriber, _NO_CHANNELS).keys()

    # Receiving: the broker's sink

    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        """Hand a batch of the broker's to the local subscribers; each hears it in order.

        Batches of several readers go one after the other: a channel may move between their servers.
        """
        pieces = chain.from_iterable(self._pieces(batch, time.monotonic()))
        try:
            async with self._handing_out:
                await Round(pieces, self.congestion, self._counters).run(self.loop)
        except asyncio.CancelledError:
            if not self.closed:
                # The chains know some of it that not all have got: no repetition will bring it.
                self.lost(list(dict.fromkeys(channel for channel, _ in batch)), MISSED)
            raise
        except Exception as exc:
            # The broker's reader must go on, and subscribers must know that something is missing.
            text = "%s: handing out messages failed"
            self._throttle.log(logging.ERROR, "deliver", text, self.config.url, exc_info=exc)
            self.lost(list(dict.fromkeys(channel for channel, _ in batch)), MISSED)

    def _pieces(
        self, batch: Sequence[tuple[str, bytes]], arrived_at: float
    ) -> Iterator[list[Piece]]:
        """Cut a batch into runs of messages on one channel; signal gaps where they belong.

        Yields:
            Up to `PIECES_AHEAD` at a time, and all that precede a gap before it is signalled.
        """
        topics = self._topics
        pieces: list[Piece] = []
        run: list[Delivery] = []
        topic, last, size = Topic(self._memory), "", 0
        for channel, message in batch:
            if run and (channel != last or size >= RUN_BYTES or len(run) == RUN_MESSAGES):
                pieces.append(topic.piece(run))
                run, size = [], 0
                if len(pieces) >= PIECES_AHEAD:
                    yield pieces
                    pieces = []
            found = topics.get(channel)
            if found is None:
                continue
            topic, last = found, channel
            try:
                publisher, counter, previous, age_us, is_text, origin, payload = unpack(message)
            except NotOurs:
                self.poison(channel)
                continue
            except NewerVersion:
                verdict = NEWER
            else:
                verdict = topic.take(publisher, counter, previous, age_us, arrived_at)
            if verdict != DELIVER:
                if run:
                    pieces.append(topic.piece(run))
                    run, size = [], 0
                yield pieces
                pieces = []
                if topics.get(channel) is not topic or not self._is_news(channel, verdict):
                    continue
            delivery = Delivery(channel, payload, is_text, origin)
            if is_text and not payload.isascii():
                try:
                    delivery.event()
                except ValueError:
                    self.poison(channel)  # It says that it is text, and is none.
                    continue
            run.append(delivery)
            size += len(payload)
        if run:
            pieces.append(topic.piece(run))
        yield pieces

    def _is_news(self, channel: str, verdict: int) -> bool:
        """Signal what a message's place in its chain tells; whether it is to be delivered."""
        if verdict == Chain.GAP:
            self._gap([channel], MISSED)
            return True
        if verdict == NEWER:
            self._gap([channel], VERSION)
            return False
        self._counters["dropped_late"] += 1
        if verdict == Chain.LATE:
            self._gap([channel], LATE)
        return False

    def lost(self, channels: Sequence[str], reason: str) -> None:
        """Signal what the broker lost."""
        known = [channel for channel in channels if channel in self._topics]
        now = time.monotonic()
        for channel in known:
            self._topics[channel].gap_signalled(now)
        self._gap(known, reason)

    def _gap(self, channels: Sequence[str], reason: str) -> None:
        hit: dict[Subscriber, list[str]] = {}
        for channel in channels:
            for send_queue in self._topics[channel].present():
                hit.setdefault(send_queue.owner, []).append(channel)
        for subscriber, names in hit.items():
            self.count_gap(reason)
            try:
                subscriber.on_gap(names, reason)
            except Exception as exc:
                text = "%s: a subscriber failed to take a gap"
                self._throttle.log(logging.ERROR, "on_gap", text, self.config.url, exc_info=exc)

    def count(self, counter: str, count: int = 1) -> None:
        """Add to one of the counters of `stats`."""
        self._counters[counter] += count

    def count_gap(self, reason: str) -> None:
        """Count one gap signalled to one subscriber."""
        self._counters["gaps"] += 1
        self._throttle.log(logging.INFO, f"gap {reason}", "gap signalled: %s", reason)

    def poison(self, channel: str) -> None:
        """Count and log a payload that makes no sense to us; it was skipped."""
        self._counters["poison"] += 1
        self._throttle.log(
            logging.WARNING,
            "poison",
            "%s: skipped a payload on channel %r that no django_sockets process published",
            self.config.url,
            channel,
        )

    # The rest

    def stats(self) -> dict[str, int]:
        """Counters since the hub was opened, and what it holds now."""
        return {
            **dict.fromkeys(COUNTERS, 0),
            **self._counters,
            "sockets": len(self.connections),
            "channels": len(self._topics),
            "subscribers": len(self._channels_of),
        }

    async def drain(self, seconds: float | None = None) -> int:
        """Close the sockets with 1012, spread over a time, and then the broker.

        Each close waits for the socket's handler at work; `disconnect` runs as always. New
        handshakes are refused with 503. `django_sockets.drain` does it for all hubs of a loop.

        Args:
            seconds: None for the setting `drain_seconds`.

        Returns:
            How many sockets are left, because a handler did not return; the hub is open then.
        """
        if seconds is None:
            seconds = self.config.settings.drain_window_seconds
        left = await self.connections.drain(seconds)
        if left:
            logger.warning("%d sockets did not end within %g s of draining", left, seconds)
        else:
            await self.aclose()
        return left

    async def aclose(self) -> None:
        """Close the broker; idempotent. Subscribers hear nothing more; open iterators end."""
        if self.closed:
            return
        self.closed = True
        _forget(self)
        for subscriber in list(self._channels_of):
            if isinstance(subscriber, EventQueue):
                subscriber.close()
        await self._broker.aclose()

    async def __aenter__(self) -> Hub:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


_hubs: dict[asyncio.AbstractEventLoop, list[Hub]] = {}


@frameless
def open_hub(source: Source | None = None) -> Hub:
    """Open a hub on the running event loop; use it as `async with open_hub(url) as hub:`.

    It connects when it is first needed. Until it is closed, everything else that publishes on this
    loop with the same configuration goes through it.

    Args:
        source: a URL, or None for Django's setting, the environment, or memory://.

    Raises:
        ConfigurationError: the URL is wrong.
        RuntimeError: no event loop is running.
    """
    hub = Hub(load_config(source))
    forget_closed(_hubs)
    _hubs.setdefault(hub.loop, []).append(hub)
    return hub


def hub_on(loop: asyncio.AbstractEventLoop, config: Config) -> Hub | None:
    """The open hub of a loop for a configuration, if it has one."""
    return next((hub for hub in _hubs.get(loop, ()) if hub.config == config), None)


def _forget(hub: Hub) -> None:
    hubs = _hubs.get(hub.loop, [])
    if hub in hubs:
        hubs.remove(hub)
