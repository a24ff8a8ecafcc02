"""Parts of the presence contracts: a sink that records, and one channel with its broker."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import pytest

from ...broker import Broker, PresenceSink, SupportsPresence
from ...deadlines import with_deadline
from ...presence import ABSENT, LeaseAction, LeaseReply, PresenceDiff, PresenceSnapshot
from ...registry import open_broker
from .. import ledger
from .base import ContractTests, RecordingSink, patient, with_options

__all__ = ["LONG_SECONDS", "PresenceRecorder", "PresenceRoom", "PresenceTests", "replica_of"]

LONG_SECONDS = 600
"""A lease that does not end during a test."""


class PresenceRecorder(RecordingSink):
    """Records ("snapshot", channel, snapshot), ("diff", channel, diff) and ("gone", channels)."""

    def presence_snapshot(self, channel: str, snapshot: PresenceSnapshot | None) -> None:
        self.seen.append(("snapshot", channel, snapshot))
        self._changed.set()

    def presence_diff(self, channel: str, diff: PresenceDiff) -> None:
        self.seen.append(("diff", channel, diff))
        self._changed.set()

    def presence_lost(self, channels: Sequence[str], reason: str) -> None:
        self.seen.append(("gone", tuple(sorted(channels)), reason))
        self._changed.set()

    def found(self, kind: str, channel: str) -> list[Any]:
        """The recorded items of one kind for a channel."""
        return [one[2] for one in self.seen if one[:2] == (kind, channel)]

    async def wait(self, condition: Callable[[], object]) -> None:
        """Return when a condition holds; it is checked at each call of the broker."""

        async def look() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await with_deadline(ledger.PATIENCE_SECONDS, look())

    async def snapshots(self, channel: str, count: int = 1) -> list[PresenceSnapshot | None]:
        """The snapshots of a channel, once there are so many."""
        await self.wait(lambda: len(self.found("snapshot", channel)) >= count)
        return self.found("snapshot", channel)

    async def diffs(self, channel: str, count: int = 1) -> list[PresenceDiff]:
        """The diffs of a channel, once there are so many."""
        await self.wait(lambda: len(self.found("diff", channel)) >= count)
        return self.found("diff", channel)

    async def version(self, channel: str, version: int) -> PresenceSnapshot:
        """The replica of a channel, once it has this version."""
        await self.wait(lambda: replica_of(self.seen, channel).version >= version)
        return replica_of(self.seen, channel)


def replica_of(seen: Sequence[tuple[Any, ...]], channel: str) -> PresenceSnapshot:
    """The entries of a channel by what a sink has got; fails if a change is missing."""
    found = ABSENT
    for kind, name, item in seen:
        if name != channel or kind not in ("snapshot", "diff"):
            continue
        if kind == "snapshot":
            assert item is not None
            found = item
        elif item.epoch == found.epoch and item.version <= found.version:
            continue
        else:
            assert item.version == found.version + 1
            assert found is ABSENT or not found.version or item.epoch == found.epoch
            entries = {**found.entries, **item.changes}
            kept = {field: value for field, value in entries.items() if value}
            found = PresenceSnapshot(item.epoch, item.version, kept)
    return found


class PresenceRoom:
    """One channel, and a broker whose sink records.

    Attributes:
        broker: the broker; also as `presence`.
        sink: the sink of the broker.
        channel: the channel.
    """

    def __init__(self, url: str, channel: str) -> None:
        self.sink = PresenceRecorder()
        self.broker: Broker = open_broker(url, self.sink)
        self.channel = channel
        assert isinstance(self.sink, PresenceSink)

    @property
    def presence(self) -> SupportsPresence:
        assert isinstance(self.broker, SupportsPresence)
        return self.broker

    async def change(self, **changes: bytes | None) -> Any:
        """Put entries of the process "p", or remove them (None)."""
        return await self.presence.change_presence(
            self.channel, {f"p:{name}": value or b"" for name, value in changes.items()}
        )

    async def watch(self) -> PresenceSnapshot:
        """Watch the channel; returns the first snapshot."""
        before = len(self.sink.found("snapshot", self.channel))
        await self.presence.watch_presence([self.channel])
        snapshot = self.sink.found("snapshot", self.channel)[before]
        assert snapshot is not None
        return cast("PresenceSnapshot", snapshot)

    async def read(self) -> PresenceSnapshot:
        """Read the channel outside of the stream."""
        return (await self.presence.read_presence([self.channel]))[self.channel]

    async def lease(
        self,
        process: str,
        action: LeaseAction,
        seconds: float = LONG_SECONDS,
        grace: float = 0,
        adopt: Sequence[str] = (),
        server: str = "",
    ) -> LeaseReply:
        """Call `lease` at one server, the one of the channel by default."""
        return await self.presence.lease(
            server or self.presence.lease_server_of(self.channel),
            process,
            action,
            lease_seconds=seconds,
            grace_seconds=grace,
            adopt=adopt,
        )

    async def until_dead(self, *processes: str) -> LeaseReply:
        """Look until the leases of these processes have ended.

        The looks name a long lease. With a short one, a pause of a busy machine would give
        everybody a whole lease again and again.
        """

        async def look() -> LeaseReply:
            while True:
                reply = await self.lease("watcher", LeaseAction.LOOK)
                if reply.dead.issuperset(processes):
                    return reply
                await asyncio.sleep(0.02)

        return await with_deadline(ledger.PATIENCE_SECONDS, look())


class PresenceTests(ContractTests):
    """Tests with a room whose server-side names no other test uses."""

    @pytest.fixture
    def own_url(self, broker_url: str) -> str:
        """The URL with a prefix of its own, because all channels share the leases."""
        return patient(with_options(broker_url, prefix=f"p{uuid.uuid4().hex}"))

    @pytest.fixture
    async def here(self, own_url: str, room: str) -> AsyncIterator[PresenceRoom]:
        here = PresenceRoom(own_url, room)
        yield here
        await here.broker.aclose()

    @pytest.fixture
    async def there(self, own_url: str, room: str) -> AsyncIterator[PresenceRoom]:
        """The same channel in another broker, as in another process."""
        there = PresenceRoom(own_url, room)
        yield there
        await there.broker.aclose()
