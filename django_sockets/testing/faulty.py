"""A broker that loses, repeats, reorders and delays the messages to a hub, controlled by a test.

    faults = Faults()
    async with open_hub(faults.around("memory://")) as hub, hub.subscribe("room") as events:
        faults.drop()
        ...

A `Faults` object holds the faults to come. Hubs and sockets that are opened with the configuration
of `Faults.around` receive through a `FaultyBroker`, which stands between the real broker and its
sink. Publishing is not changed. Calls to queues and presence have faults of their own. With history
rules, the hub heals what was lost from the real broker, unless `Faults.heals` is False.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from ..broker import (
    HistoryItem,
    HistorySink,
    Sink,
    SupportsHistory,
    SupportsPresence,
    SupportsQueue,
)
from ..conf import Config, Source, load_config
from ..errors import ConfigurationError, HistoryError
from ..history import READ_BYTES, HistoryReply, Start
from ..registry import open_broker
from ..url import BrokerURL
from .faulty_presence import LOST_PRESENCE_REPLY, REFUSED_PRESENCE, FaultyPresence
from .faulty_queues import LOST_REPLY, REFUSED, FaultyQueues

__all__ = ["Faults", "FaultyBroker"]

LOST_LINK = "lost by a test"
"""Gap reason of `disconnect` and `gap`."""
UNREADABLE = "made unreadable by a test"
"""Problem of each read while `Faults.heals` is False."""
PRESENCE = (
    *("lease_servers", "lease_server_of", "change_presence", "watch_presence"),
    *("unwatch_presence", "request_presence", "read_presence", "lease"),
    *("presence_snapshot", "presence_diff", "presence_lost"),
)
"""The names of `SupportsPresence` and `PresenceSink`. Only a broker with presence has them."""
REPLAYED = 5
"""Messages of one channel that `replay` repeats."""


class _Step(NamedTuple):
    kind: str
    messages: int = 1
    seconds: float = 0.0


class Faults:
    """The faults of the messages to a hub. Call every method on the hub's event loop.

    Each message uses up one step, in the order in which the methods added them. Without a step the
    message is delivered, or, with a seed, may have a random fault.

    Args:
        seed: seed of random faults: the same seed and messages give the same faults. Default: None,
            no random faults.
        rate: the share of messages that have a random fault, 0 to 1. Default: 0.2.
        max_delay_seconds: the longest random delay. Default: 0.002.
        heals: see the attribute. Default: True.

    Attributes:
        heals: the history of channels with a rule can be read. False: each read fails, so that the
            hub signals a gap. It may be changed at any time.
        done: kind of fault -> number of messages that had it.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        rate: float = 0.2,
        max_delay_seconds: float = 0.002,
        heals: bool = True,
    ) -> None:
        self.heals = heals
        self.done: Counter[str] = Counter()
        self._seen = 0
        self._more_seen = asyncio.Event()
        self._steps: deque[_Step] = deque()
        self._queue_faults: deque[str] = deque()
        self._presence_faults: deque[str] = deque()
        self._diffs_to_drop = 0
        self._random = None if seed is None else random.Random(seed)  # noqa: S311 - no secret
        self._rate = rate
        self._max_delay_seconds = max_delay_seconds
        self._brokers: list[FaultyBroker] = []

    def around(self, source: Source | None = None) -> Config:
        """A configuration that opens the broker of `source` with these faults."""
        return replace(load_config(source), open_broker=self._open)

    def _open(self, url: BrokerURL, sink: Sink) -> FaultyBroker:
        broker = FaultyBroker(url, sink, self)
        self._brokers.append(broker)
        return broker

    def pass_on(self, messages: int = 1) -> None:
        """Deliver the next messages unchanged."""
        self._steps.append(_Step("pass", messages))

    def drop(self, messages: int = 1) -> None:
        """Lose the next messages without a gap."""
        self._steps.append(_Step("drop", messages))

    def duplicate(self, messages: int = 1) -> None:
        """Deliver each of the next messages twice."""
        self._steps.append(_Step("duplicate", messages))

    def reorder(self, messages: int = 1) -> None:
        """Deliver each of the next messages after the message that follows it on its channel."""
        self._steps.append(_Step("reorder", messages))

    def delay(self, seconds: float, messages: int = 1) -> None:
        """Wait before each of the next messages. Later messages wait too."""
        self._steps.append(_Step("delay", messages, seconds))

    def replay(self, messages: int = 1) -> None:
        """Before each of the next messages, repeat the last `REPLAYED` messages of its channel."""
        self._steps.append(_Step("replay", messages))

    def disconnect(self, messages: int = 1) -> None:
        """Lose the next messages as with a lost link.

        Every subscribed channel then has a gap, or is healed from its history. The members of
        watched channels are read again.
        """
        self._steps.append(_Step("disconnect", messages))

    def gap(self) -> None:
        """Report a lost link at this point, on every subscribed channel, with nothing lost.

        The hub signals a gap on each channel that it does not heal from a history. It reads the
        members of watched channels again.
        """
        for broker in self._brokers:
            broker.signal_gap()

    def refuse_queue_calls(self, calls: int = 1) -> None:
        """Fail the next calls to queues with a `QueueError`. The server does not get them."""
        self._queue_faults.extend([REFUSED] * calls)

    def lose_queue_replies(self, calls: int = 1) -> None:
        """Carry the next calls to queues out, and fail them with a `QueueError` that is `unknown`.

        A message that such a call has taken is lost.
        """
        self._queue_faults.extend([LOST_REPLY] * calls)

    def drop_presence(self, diffs: int = 1) -> None:
        """Lose the next changes of members of watched channels, without a sign."""
        self._diffs_to_drop += diffs

    def next_diff_arrives(self) -> bool:
        """Whether one change of members is not lost."""
        if not self._diffs_to_drop:
            return True
        self._diffs_to_drop -= 1
        self.done["presence dropped"] += 1
        return False

    def refuse_presence_calls(self, calls: int = 1) -> None:
        """Fail the next calls of presence with a `PresenceError`. The server does not get them."""
        self._presence_faults.extend([REFUSED_PRESENCE] * calls)

    def lose_presence_replies(self, calls: int = 1) -> None:
        """Carry the next calls of presence out, and fail them with an error that is `unknown`."""
        self._presence_faults.extend([LOST_PRESENCE_REPLY] * calls)

    def next_presence_fault(self) -> str:
        """The fault of one call of presence; "" for none."""
        fault = self._presence_faults.popleft() if self._presence_faults else ""
        if fault:
            self.done[fault] += 1
        return fault

    def next_queue_fault(self) -> str:
        """The fault of one call to a queue; "" for none."""
        fault = ""
        if self._queue_faults:
            fault = self._queue_faults.popleft()
        elif self._random is not None and self._random.random() < self._rate:
            fault = self._random.choice((REFUSED, LOST_REPLY))
        if fault:
            self.done[fault] += 1
        return fault

    def stop(self) -> None:
        """Add no more faults. Messages that are held back are still delivered late."""
        self._steps.clear()
        self._queue_faults.clear()
        self._presence_faults.clear()
        self._diffs_to_drop = 0
        self._random = None

    async def until_seen(self, messages: int) -> None:
        """Return when `messages` messages in total have come, delivered or not."""
        while self._seen < messages:
            self._more_seen.clear()
            await self._more_seen.wait()

    def next_step(self) -> _Step:
        """The step for one message; `messages` counts down to 1."""
        self._seen += 1
        self._more_seen.set()
        if self._steps:
            step = self._steps.popleft()
            if step.messages > 1:
                self._steps.appendleft(step._replace(messages=step.messages - 1))
        elif self._random is not None and self._random.random() < self._rate:
            step = self._random_step(self._random)
        else:
            return _PASS
        self.done[step.kind] += 1
        return step

    def _random_step(self, random: random.Random) -> _Step:
        kind = random.choice(("drop", "duplicate", "reorder", "delay", "replay", "disconnect"))
        if kind == "disconnect":
            lost = random.randint(1, 5)
            if lost > 1:
                self._steps.appendleft(_Step(kind, lost - 1))
            return _Step(kind, lost)
        return _Step(kind, 1, random.uniform(0, self._max_delay_seconds))


_PASS = _Step("pass")


class FaultyBroker:
    """A broker that puts `faults` between the broker of a URL and its sink.

    Raises:
        ConfigurationError: there are history rules, and the broker of the URL has no history.
    """

    def __init__(self, url: BrokerURL, sink: Sink, faults: Faults) -> None:
        self._sink = sink
        self._faults = faults
        self._broker = open_broker(url, self)
        self._history = self._broker if isinstance(self._broker, SupportsHistory) else None
        if url.history and self._history is None:
            raise ConfigurationError(f"{url}: this broker has no history: remove the rules")
        self.url = self._broker.url
        self.limits = self._broker.limits
        self._subscribed: dict[str, None] = {}
        self._held: dict[str, list[bytes]] = {}
        self._recent: dict[str, deque[bytes]] = {}
        if isinstance(self._broker, SupportsQueue):
            # As attributes, so that only a broker with queues passes for one.
            queues = FaultyQueues(url, self._broker, faults.next_queue_fault)
            for method in ("queue_push", "queue_pop", "queue_return", "queue_clear"):
                setattr(self, method, getattr(queues, method))

        self._presence: FaultyPresence | None = None
        if isinstance(self._broker, SupportsPresence):
            self._presence = presence = FaultyPresence(
                url, self._broker, sink, faults.next_presence_fault, faults.next_diff_arrives
            )
            for name in PRESENCE:
                setattr(self, name, getattr(presence, name))

    async def publish(
        self, channels: Sequence[str], payload: bytes, headers: Sequence[bytes] = ()
    ) -> None:
        await self._broker.publish(channels, payload, headers)

    async def subscribe(self, channels: Sequence[str]) -> None:
        await self._broker.subscribe(channels)
        self._subscribed.update(dict.fromkeys(channels))

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        for channel in channels:
            self._subscribed.pop(channel, None)
            self._held.pop(channel, None)
            self._recent.pop(channel, None)
        await self._broker.unsubscribe(channels)

    async def aclose(self) -> None:
        await self._broker.aclose()

    # The history of the real broker; the hub uses it only with rules

    @property
    def unkept(self) -> int:
        return 0 if self._history is None else self._history.unkept

    async def subscribe_with_history(self, starts: Mapping[str, Start]) -> None:
        if self._history is not None:
            await self._history.subscribe_with_history(starts)
        self._subscribed.update(dict.fromkeys(starts))

    def request_history(self, channel: str, start: Start) -> None:
        if self._history is not None:
            self._history.request_history(channel, start)

    async def read_history(
        self, starts: Mapping[str, Start], *, messages: int = 100, max_bytes: int = READ_BYTES
    ) -> dict[str, HistoryReply]:
        if self._history is None or not self._faults.heals:
            raise HistoryError(self.url, UNREADABLE, channels=starts)
        return await self._history.read_history(starts, messages=messages, max_bytes=max_bytes)

    # The sink of the real broker

    async def deliver_with_history(self, batch: Sequence[HistoryItem]) -> None:
        for channel, item in batch:
            if not isinstance(item, HistoryReply):
                await self.deliver([(channel, item)])
                continue
            reply = item if self._faults.heals else HistoryReply.unavailable(UNREADABLE)
            await cast("HistorySink", self._sink).deliver_with_history([(channel, reply)])

    def history_renamed(self, channels: Sequence[str], history_id: bytes) -> None:
        cast("HistorySink", self._sink).history_renamed(channels, history_id)

    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        for channel, message in batch:
            step = self._faults.next_step()
            if step.kind == "drop":
                continue
            if step.kind == "disconnect":
                if step.messages == 1:
                    self.signal_gap()
                continue
            if step.kind == "reorder":
                self._held.setdefault(channel, []).append(message)
                continue
            if step.kind == "delay":
                await asyncio.sleep(step.seconds)
            recent = self._recent.setdefault(channel, deque(maxlen=REPLAYED))
            before = list(recent) if step.kind == "replay" else []
            recent.append(message)
            copies = [message] * (2 if step.kind == "duplicate" else 1)
            late = self._held.pop(channel, [])
            await self._sink.deliver([(channel, each) for each in (*before, *copies, *late)])

    def lost(self, channels: Sequence[str], reason: str) -> None:
        self._sink.lost(channels, reason)

    def signal_gap(self) -> None:
        """Tell the hub that every subscribed channel may have lost messages."""
        if self._subscribed:
            self._sink.lost(list(self._subscribed), LOST_LINK)
        if self._presence is not None:
            self._presence.signal_lost(LOST_LINK)
