"""Several independent brokers as one: the name of a channel picks the host.

Rendezvous hashing: each host has a score for each channel, and the highest wins, so that another
host takes over its own share of the channels and no other channel moves. Every process must name
the same hosts. A host that is down takes its own channels with it, and no others.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

from ..broker import Broker, Inspectable, Limits, Report
from ..errors import BrokerClosed, BrokerError, PublishError, SubscribeError
from ..url import BrokerURL

__all__ = ["ShardedBroker"]

CHANNELS_REMEMBERED = 65_536


class ShardedBroker:
    """A broker made of others. See `django_sockets.broker` for the contract.

    Args:
        url: that of all of them together.
        parts: one for each of `url.shards`, with the sink of this one; closed with it.
    """

    def __init__(self, url: BrokerURL, parts: Sequence[Broker]) -> None:
        self.url = url
        self.limits = Limits(
            min(part.limits.max_payload_bytes for part in parts),
            min(part.limits.max_channel_bytes for part in parts),
        )
        self._parts = parts
        names = [shard.identity.encode() for shard in url.shards]

        @lru_cache(maxsize=CHANNELS_REMEMBERED)
        def pick(channel: str) -> int:
            return max(range(len(names)), key=lambda index: _score(names[index], channel))

        self._pick = pick
        self._calls: dict[str, set[object]] = {}
        self._kept: set[str] = set()
        self._publishing: set[asyncio.Future[None]] = set()
        self._closed = False

    def _by_part(self, channels: Iterable[str]) -> dict[int, list[int]]:
        """Number of the part -> places in `channels`."""
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
        # Tasks also for a single host, or a call to one would overtake one to several; and of their
        # own, because what is cancelled before it began would be a hole in the order.
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
        if not call.cancelled():
            call.exception()  # Whoever was to be told may have been cancelled.

    async def subscribe(self, channels: Sequence[str]) -> None:
        """See `Broker.subscribe`."""
        if self._closed:
            raise BrokerClosed(self.url)
        call = object()
        for channel in channels:
            self._calls.setdefault(channel, set()).add(call)
        begun = [
            asyncio.ensure_future(
                self._subscribe(number, [channels[place] for place in places], call)
            )
            for number, places in self._by_part(channels).items()
        ]
        try:
            await asyncio.gather(*begun)
        except BaseException as exc:
            for each in begun:
                each.cancel()
            await asyncio.gather(*begun, return_exceptions=True)
            await self._withdraw(channels, call)
            if isinstance(exc, SubscribeError):
                problem = f"{exc.url}: {exc.reason}"
                raise SubscribeError(self.url, problem, channels=channels) from _cause(exc)
            raise
        self._kept.update(channel for channel in channels if self._end(channel, call))

    async def _subscribe(self, number: int, channels: Sequence[str], call: object) -> None:
        """Subscribe at one host to what no later call has given up again."""
        wanted = [channel for channel in channels if call in self._calls.get(channel, ())]
        if wanted:
            await self._parts[number].subscribe(wanted)

    def _end(self, channel: str, call: object) -> bool:
        """A call is over; False if an unsubscribe came in between."""
        calls = self._calls.get(channel)
        if calls is None or call not in calls:
            return False
        calls.remove(call)
        if not calls:
            del self._calls[channel]
        return True

    async def _withdraw(self, channels: Sequence[str], call: object) -> None:
        """A call failed: give up what nobody else has asked for."""
        orphans = [
            channel
            for channel in channels
            if self._end(channel, call) and channel not in self._kept and channel not in self._calls
        ]
        await self._unsubscribe(orphans)

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """See `Broker.unsubscribe`."""
        for channel in channels:
            self._kept.discard(channel)
            self._calls.pop(channel, None)
        await self._unsubscribe(channels)

    async def _unsubscribe(self, channels: Sequence[str]) -> None:
        for number, places in self._by_part(channels).items():
            await self._parts[number].unsubscribe([channels[place] for place in places])

    async def inspect(self) -> Report:
        """Ask every host; what is told of one says which."""
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


def _score(host: bytes, channel: str) -> bytes:
    return hashlib.blake2b(host + b"\0" + channel.encode(), digest_size=8).digest()


def _cause(error: BaseException) -> BaseException:
    """Why one host failed, as that host's own error says."""
    return error.__cause__ or error
