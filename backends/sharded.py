"""Several independent hosts used as one broker: the name of a channel selects the host.

Rendezvous hashing: each host has a score for each channel, and the host with the highest score
serves it. A host that is added takes over its share of the channels, and no other channel moves.
Every process must name the same hosts. If a host is down, only its own channels are down.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from ..broker import (
    Broker,
    Inspectable,
    Limits,
    QueueEntry,
    Report,
    SupportsHistory,
    SupportsPresence,
    SupportsQueue,
)
from ..errors import (
    BrokerClosed,
    BrokerError,
    ConfigurationError,
    HistoryError,
    PublishError,
)
from ..history import READ_BYTES, HistoryReply, Start
from ..url import BrokerURL
from .client.deadlines import ignore_result
from .host_reads import read_from_hosts
from .host_subscriptions import HostSubscriptions, cause_of
from .sharded_presence import ShardedPresence

__all__ = ["ShardedBroker", "sharded_broker"]

CHANNELS_REMEMBERED = 65_536
PRESENCE = (
    "change_presence", "lease", "lease_server_of", "lease_servers", "read_presence",
    "request_presence", "unwatch_presence", "watch_presence",
)  # fmt: skip
"""The names of `SupportsPresence`."""


class ShardedBroker:
    """A broker made of several others. See `django_sockets.broker` for the contract.

    Args:
        url: the URL that names all hosts.
        parts: one broker for each of `url.shards`, with the sink of this one. They are closed with
            it.
    """

    def __init__(self, url: BrokerURL, parts: Sequence[Broker]) -> None:
        self.url = url
        self.limits = Limits(
            min(part.limits.max_payload_bytes for part in parts),
            min(part.limits.max_channel_bytes for part in parts),
        )
        self._parts = parts
        self._queue_parts = [part for part in parts if isinstance(part, SupportsQueue)]
        names = [shard.identity.encode() for shard in url.shards]

        @lru_cache(maxsize=CHANNELS_REMEMBERED)
        def pick(channel: str) -> int:
            return max(range(len(names)), key=lambda index: _score(names[index], channel))

        self._pick = pick
        self._subscriptions = HostSubscriptions(url, self._by_part, self._unsubscribe_at)
        self._publishing: set[asyncio.Future[None]] = set()
        self._closed = False

    def _by_part(self, channels: Iterable[str]) -> dict[int, list[int]]:
        """Index of the part -> indexes in `channels`."""
        groups: dict[int, list[int]] = {}
        for place, channel in enumerate(channels):
            groups.setdefault(self._pick(channel), []).append(place)
        return groups

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerClosed(self.url)

    async def publish(
        self, channels: Sequence[str], payload: bytes, headers: Sequence[bytes] = ()
    ) -> None:
        """See `Broker.publish`."""
        self._check_open()
        # A single host gets a task as well, or its call could overtake a call to several hosts. A
        # cancelled caller does not cancel these tasks, because a gap would break the order.
        calls = []
        for number, places in self._by_part(channels).items():
            part = self._parts[number].publish(
                [channels[place] for place in places],
                payload,
                [headers[place] for place in places] if headers else (),
            )
            call = asyncio.ensure_future(part)
            self._publishing.add(call)
            call.add_done_callback(self._published)
            calls.append(call)
        await asyncio.wait(calls)
        outcomes = [call.exception() for call in calls]
        errors = [outcome for outcome in outcomes if outcome is not None]
        if not errors:
            return
        failed: set[str] = set()
        unknown: set[str] = set()
        problems = []
        for error in errors:
            if not isinstance(error, PublishError):
                raise error
            failed.update(error.failed)
            unknown.update(error.unknown)
            problems.append(f"{error.url}: {error.reason}")
        raise PublishError(
            self.url,
            "; ".join(problems),
            failed=[channel for channel in channels if channel in failed],
            unknown=[channel for channel in channels if channel in unknown],
        ) from cause_of(errors[0])

    def _published(self, call: asyncio.Future[None]) -> None:
        self._publishing.discard(call)
        ignore_result(call)  # The caller may have been cancelled.

    async def subscribe(self, channels: Sequence[str]) -> None:
        """See `Broker.subscribe`."""
        self._check_open()
        await self._subscriptions.subscribe(channels, self._subscribe_at)

    async def _subscribe_at(self, number: int, channels: list[str]) -> None:
        await self._parts[number].subscribe(channels)

    async def subscribe_with_history(self, starts: Mapping[str, Start]) -> None:
        """See `SupportsHistory`."""
        self._check_open()

        async def begin(number: int, channels: list[str]) -> None:
            part = _with_history(self._parts[number])
            await part.subscribe_with_history({channel: starts[channel] for channel in channels})

        await self._subscriptions.subscribe(list(starts), begin)

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """See `Broker.unsubscribe`."""
        await self._subscriptions.unsubscribe(channels)

    async def _unsubscribe_at(self, number: int, channels: list[str]) -> None:
        await self._parts[number].unsubscribe(channels)

    # `SupportsHistory`; `open_broker` checks that every part has the ability

    @property
    def unkept(self) -> int:
        """See `SupportsHistory`."""
        return sum(part.unkept for part in self._parts if isinstance(part, SupportsHistory))

    def request_history(self, channel: str, start: Start) -> None:
        """See `SupportsHistory`."""
        _with_history(self._parts[self._pick(channel)]).request_history(channel, start)

    async def read_history(
        self, starts: Mapping[str, Start], *, messages: int = 100, max_bytes: int = READ_BYTES
    ) -> dict[str, HistoryReply]:
        """See `SupportsHistory`."""
        self._check_open()

        async def read(number: int, names: list[str]) -> dict[str, HistoryReply]:
            return await _with_history(self._parts[number]).read_history(
                {name: starts[name] for name in names}, messages=messages, max_bytes=max_bytes
            )

        return await read_from_hosts(self.url, list(starts), self._by_part, read, HistoryError)

    def offer_presence(self) -> None:
        """Have the methods of `SupportsPresence`, if all hosts have them."""
        parts = [part for part in self._parts if isinstance(part, SupportsPresence)]
        if len(parts) < len(self._parts):
            return
        # As attributes, so that only a broker with the ability passes for one.
        presence = ShardedPresence(self.url, parts, self._pick, self._by_part, self._check_open)
        for name in PRESENCE:
            setattr(self, name, getattr(presence, name))

    async def inspect(self) -> Report:
        """Ask every host; each fact, warning and problem names its host."""
        reports: list[Report] = []
        problems = []
        report = Report(server="", topology=f"{len(self._parts)} independent hosts")
        for part in self._parts:
            if not isinstance(part, Inspectable):
                continue
            try:
                found = await part.inspect()
            except BrokerError as exc:
                problems.append(str(exc))
                continue
            reports.append(found)
            where = str(part.url)
            report.features[where] = f"{found.server}, {found.topology}"
            for kind in ("features", "limits"):
                facts = getattr(found, kind)
                getattr(report, kind).update({f"{where} {n}": value for n, value in facts.items()})
            report.warnings += [f"{where}: {warning}" for warning in found.warnings]
            if found.problem is not None:
                problems.append(f"{where}: {found.problem}")
        report.server = ", ".join(dict.fromkeys(found.server for found in reports)) or "none"
        report.problem = "; ".join(problems) or None
        return report

    async def aclose(self) -> None:
        """See `Broker.aclose`; closes every part."""
        self._closed = True
        await asyncio.gather(*(part.aclose() for part in self._parts))
        if self._publishing:
            await asyncio.wait(list(self._publishing))


class _WithQueues(ShardedBroker):
    """Several hosts that all support queues. The name of a queue selects its host."""

    async def queue_push(
        self,
        queue: str,
        payload: bytes,
        *,
        capacity: int,
        expiry_ms: int,
        doorbell: bytes,
        once: bytes = b"",
    ) -> bool:
        """See `SupportsQueue.queue_push`."""
        part = self._queue_parts[self._pick(queue)]
        return await part.queue_push(
            queue, payload, capacity=capacity, expiry_ms=expiry_ms, doorbell=doorbell, once=once
        )

    async def queue_pop(self, queue: str) -> tuple[QueueEntry | None, int]:
        """See `SupportsQueue.queue_pop`."""
        return await self._queue_parts[self._pick(queue)].queue_pop(queue)

    async def queue_return(self, queue: str, entry: QueueEntry, *, doorbell: bytes) -> None:
        """See `SupportsQueue.queue_return`."""
        await self._queue_parts[self._pick(queue)].queue_return(queue, entry, doorbell=doorbell)

    async def queue_clear(self, prefix: str) -> None:
        """See `SupportsQueue.queue_clear`."""
        await asyncio.gather(*(part.queue_clear(prefix) for part in self._queue_parts))


def sharded_broker(url: BrokerURL, parts: Sequence[Broker]) -> ShardedBroker:
    """The broker of several hosts. It has the abilities that all hosts have.

    See `ShardedBroker`.
    """
    with_queues = all(isinstance(part, SupportsQueue) for part in parts)
    broker = (_WithQueues if with_queues else ShardedBroker)(url, parts)
    broker.offer_presence()
    return broker


def _with_history(part: Broker) -> SupportsHistory:
    """The part, which keeps messages."""
    if not isinstance(part, SupportsHistory):
        raise ConfigurationError(f"{part.url}: this broker cannot keep messages")
    return part


def _score(host: bytes, channel: str) -> bytes:
    return hashlib.blake2b(host + b"\0" + channel.encode(), digest_size=8).digest()
