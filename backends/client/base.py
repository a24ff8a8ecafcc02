"""The common part of all brokers on servers: channel names, publishers and subscriptions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Protocol

from ...broker import Limits, Sink, ThreadPublisher
from ...errors import HistoryError
from ...history import READ_BYTES, HistoryReply, HistoryRule, Start
from ...log import LogThrottle
from ...url import BrokerURL
from .commands import server_name
from .history_reads import HistoryRead
from .history_scripts import READ, KeptMessage, history_reply, read_command
from .open_reads import OpenReads
from .pipeline import NotSent, OutcomeUnknown
from .presence_calls import PresenceCalls
from .publisher import Outcome, Publisher, RefusalLog, raise_for_outcomes
from .queries import Queries, Query, Unanswered
from .queues import QueueCalls
from .subscriptions import Subscriptions

logger = logging.getLogger("django_sockets")

__all__ = ["ServerBroker"]

NAMES_KEPT = 4096
"""Size of the cache of server-side names."""


class KeepingPublisher(Protocol):
    """Publishes messages that are kept; see `cluster.router`."""

    def send_kept(self, messages: Sequence[KeptMessage]) -> Awaitable[Sequence[Outcome]]:
        """As `Publisher.send`."""

    async def aclose(self) -> None:
        """As `Publisher.aclose`."""


HISTORY = Query(history_reply, READ)


class ServerBroker(QueueCalls, PresenceCalls):
    """The common part of a broker.

    A subclass sets `_publisher`, `_subscriptions`, `_scripts`, `_queries`, and, if there are
    history rules, `_keeper`.

    Attributes:
        thread_publisher: publishes on the calling thread; None if the broker cannot.
        unkept: see `SupportsHistory`.
    """

    thread_publisher: ThreadPublisher | None = None
    _publisher: Publisher
    _subscriptions: Subscriptions
    _keeper: KeepingPublisher
    _queries: Queries

    def __init__(self, url: BrokerURL, sink: Sink) -> None:
        self.url = url
        self._reads = OpenReads(url, sink)
        self.unkept = 0
        self._keeps = bool(url.history)
        self._rule = lru_cache(maxsize=NAMES_KEPT)(url.history.rule_for)
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self._refusals = RefusalLog(url)
        self.limits = Limits()
        prefix = url.options.prefix.encode()
        # A cache of one argument, because several would build a tuple for each look-up.
        self._name = lru_cache(maxsize=NAMES_KEPT)(partial(server_name, prefix))

    async def publish(
        self, channels: Sequence[str], payload: bytes, headers: Sequence[bytes] = ()
    ) -> None:
        """See `Broker.publish`."""
        if self._keeps and headers:
            await self._publish_by_rules(channels, payload, headers)
            return
        try:
            outcomes = await self._publisher.send(
                [
                    (self._name(channel), headers[index] + payload if headers else payload)
                    for index, channel in enumerate(channels)
                ]
            )
        except (NotSent, OutcomeUnknown) as exc:
            outcomes = [exc] * len(channels)
        raise_for_outcomes(self.url, channels, outcomes, self._refusals)

    async def _publish_by_rules(
        self, channels: Sequence[str], payload: bytes, headers: Sequence[bytes]
    ) -> None:
        kept, plain = [], []
        places: tuple[list[int], list[int]] = [], []
        for index, channel in enumerate(channels):
            name, header, rule = self._name(channel), headers[index], self._rule(channel)
            if rule is None:
                plain.append((name, header + payload))
            else:
                kept.append(KeptMessage(name, header, payload, rule))
            places[rule is None].append(index)
        # Both are put in order before the first of them is awaited.
        answers = [
            (places[0], self._keeper.send_kept(kept) if kept else None),
            (places[1], self._publisher.send(plain) if plain else None),
        ]
        outcomes: list[Outcome] = [None] * len(channels)
        for indexes, answer in reversed(answers):
            if answer is None:
                continue
            try:
                found = await answer
            except (NotSent, OutcomeUnknown) as exc:
                found = [exc] * len(indexes)
            for index, outcome in zip(indexes, found, strict=True):
                outcomes[index] = outcome
        raise_for_outcomes(self.url, channels, outcomes, self._refusals)

    def _on_unkept(self) -> None:
        self.unkept += 1
        self._throttle.log(
            logging.WARNING,
            "unkept",
            "%s: the server is out of memory: messages are published and not kept in the history; "
            "raise its maxmemory, or set a maxmemory-policy that evicts keys with a time to live",
            self.url,
            extra={"broker": self.url},
        )

    async def subscribe_with_history(self, starts: Mapping[str, Start]) -> None:
        """See `SupportsHistory`."""
        reads = [self._open_read(channel, start) for channel, start in starts.items()]
        loop = asyncio.get_running_loop()
        given = [loop.create_future() for _ in reads]
        for read, future in zip(reads, given, strict=True):
            read.waiting.append(future)
        try:
            await self._subscriptions.subscribe(list(starts), given)
        except BaseException:
            self._reads.withdraw(reads)
            raise

    def request_history(self, channel: str, start: Start) -> None:
        """See `SupportsHistory`."""
        if self._subscriptions.has(channel):
            self._open_read(channel, start)
            self._subscriptions.read([channel])

    def _open_read(self, channel: str, start: Start) -> HistoryRead:
        read = HistoryRead(channel, self._name(channel), start, self._rule_of(channel))
        self._reads.open(read)
        return read

    async def read_history(
        self, starts: Mapping[str, Start], *, messages: int = 100, max_bytes: int = READ_BYTES
    ) -> dict[str, HistoryReply]:
        """See `SupportsHistory`."""
        self._subscriptions.check_open()
        commands = {}
        for channel, start in starts.items():
            name, rule = self._name(channel), self._rule_of(channel)
            commands[channel] = name, read_command(name, start, rule, messages, max_bytes)
        try:
            return await self._queries.read(HISTORY, commands)
        except Unanswered as exc:
            error = HistoryError(self.url, str(exc), channels=exc.channels)
        raise error

    def _rule_of(self, channel: str) -> HistoryRule:
        rule = self._rule(channel)
        if rule is None:
            raise ValueError(f"channel {channel!r} has no history rule")
        return rule

    def subscribe(self, channels: Sequence[str]) -> Coroutine[Any, Any, None]:
        """See `Broker.subscribe`."""
        return self._subscriptions.subscribe(channels)

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """See `Broker.unsubscribe`."""
        self._subscriptions.unsubscribe(channels)
        self._reads.unsubscribed(map(self._name, channels))
