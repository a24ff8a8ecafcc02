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
    SupportsQueue,
)
from ..errors import (
    BrokerClosed,
    BrokerError,
    ConfigurationError,
    HistoryError,
    PublishError,
    SubscribeError,
)
from ..history import READ_BYTES, HistoryReply, Start
from ..url import BrokerURL
from .client.deadlines import ignore_result
from .interest import Interest, keep, withdraw

__all__ = ["ShardedBroker", "sharded_broker"]

CHANNELS_REMEMBERED = 65_536


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
        self._interests: dict[str, Interest] = {}
        self._publishing: set[asyncio.Future[None]] = set()
        self._closed = False

    def _by_part(self, channels: Iterable[str]) -> dict[int, list[int]]:
        """Index of the part -> indexes in `channels`."""
        groups: dict[int, list[int]] = {}
        for place, channel in enumerate(channels):
            groups.setdefault(self._pick(channel), []).append(place)
        return groups

    async def publish(
        self, channels: Sequence[str], payload: bytes, headers: Sequence[bytes] = ()
    ) -> None:
        """See `Broker.publish`."""
        if self._closed:
            raise BrokerClosed(self.url)
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
        ) from _cause(errors[0])

    def _published(self, call: asyncio.Future[None]) -> None:
        self._publishing.discard(call)
        ignore_result(call)  # The caller may have been cancelled.

    async def subscribe(self, channels: Sequence[str]) -> None:
        """See `Broker.subscribe`."""
        await self._subscribe_all(channels, None)

    async def subscribe_with_history(self, starts: Mapping[str, Start]) -> None:
        """See `SupportsHistory`."""
        await self._subscribe_all(list(starts), starts)

    async def _subscribe_all(
        self, channels: Sequence[str], starts: Mapping[str, Start] | None
    ) -> None:
        if self._closed:
            raise BrokerClosed(self.url)
        call = object()
        for channel in channels:
            self._interests.setdefault(channel, Interest()).begin(call)
        tasks = [
            asyncio.ensure_future(
                self._subscribe(number, [channels[place] for place in places], call, starts)
            )
            for number, places in self._by_part(channels).items()
        ]
        try:
            await asyncio.gather(*tasks)
        except BaseException as exc:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.unsubscribe(withdraw(self._interests, channels, call))
            if isinstance(exc, SubscribeError):
                problem = f"{exc.url}: {exc.reason}"
                raise SubscribeError(self.url, problem, channels=channels) from _cause(exc)
            raise
        keep(self._interests, channels, call)

    async def _subscribe(
        self,
        number: int,
        channels: Sequence[str],
        call: object,
        starts: Mapping[str, Start] | None,
    ) -> None:
        """Subscribe at one host, except to channels that were unsubscribed meanwhile."""
        interests = (self._interests.get(channel) for channel in channels)
        wanted = [
            channel
            for channel, interest in zip(channels, interests, strict=True)
            if interest is not None and call in interest.calls
        ]
        if not wanted:
            return
        if starts is None:
            await self._parts[number].subscribe(wanted)
        else:
            part = _with_history(self._parts[number])
            await part.subscribe_with_history({channel: starts[channel] for channel in wanted})

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
        if self._closed:
            raise BrokerClosed(self.url)
        names = list(starts)
        calls = [
            asyncio.ensure_future(
                _with_history(self._parts[number]).read_history(
                    {names[place]: starts[names[place]] for place in places},
                    messages=messages,
                    max_bytes=max_bytes,
                )
            )
            for number, places in self._by_part(names).items()
        ]
        found: dict[str, HistoryReply] = {}
        failed: list[HistoryError] = []
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, HistoryError):
                failed.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found.update(answer)
        if failed:
            problem = "; ".join(f"{error.url}: {error.reason}" for error in failed)
            channels = [name for name in names if name not in found]
            raise HistoryError(self.url, problem, channels=channels) from _cause(failed[0])
        return {name: found[name] for name in names}

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """See `Broker.unsubscribe`."""
        for channel in channels:
            self._interests.pop(channel, None)
        for number, places in self._by_part(channels).items():
            # A subscribe call may have begun while an earlier part was awaited, and it decides.
            ended = [channels[place] for place in places if channels[place] not in self._interests]
            if ended:
                await self._parts[number].unsubscribe(ended)

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
    """The broker of several hosts. It supports queues if all hosts do. See `ShardedBroker`."""
    with_queues = all(isinstance(part, SupportsQueue) for part in parts)
    return (_WithQueues if with_queues else ShardedBroker)(url, parts)


def _with_history(part: Broker) -> SupportsHistory:
    """The part, which keeps messages."""
    if not isinstance(part, SupportsHistory):
        raise ConfigurationError(f"{part.url}: this broker cannot keep messages")
    return part


def _score(host: bytes, channel: str) -> bytes:
    return hashlib.blake2b(host + b"\0" + channel.encode(), digest_size=8).digest()


def _cause(error: BaseException) -> BaseException:
    """The cause that the error of one host names, or else that error."""
    return error.__cause__ or error
