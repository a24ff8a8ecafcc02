"""The entries and leases of a bus in this process, with the rules of the server's scripts.

It does the same as the Lua scripts in `client.presence_scripts`, step by step. A test compares
both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from ..presence import (
    ABSENT,
    ALL_ENDED,
    EMPTY_SECONDS,
    ENDED_LEASES,
    KEEP_SECONDS,
    MAX_ENTRIES,
    LeaseAction,
    LeaseReply,
    LeaseState,
    PresenceChange,
    PresenceDiff,
    PresenceSnapshot,
    check_changes,
    check_lease,
)
from .memory_member import MemoryMember
from .watches import SnapshotItem, watch_of

__all__ = ["MemoryLeases", "MemoryPresence", "MemoryPresenceCalls"]

ONLY_SERVER = "leases"
FORGET_MS = 3_600_000
"""Leases that ended before this time are forgotten."""
STEP_BACK_MS = 1000
"""If the clock goes back by less than this, it stands still instead."""
SWEEP_MS = 1000
"""Minimum interval between two removals of channels that have expired."""


class _Entries:
    """The entries of one channel."""

    __slots__ = ("entries", "epoch", "expires_ms", "version")

    def __init__(self) -> None:
        self.epoch = os.urandom(8)
        self.version = 0
        self.entries: dict[str, bytes] = {}
        self.expires_ms = 0


class MemoryPresence:
    """The entries of all channels of a bus, and the leases. The caller holds the lock of the bus.

    Args:
        publish: publishes a diff to the watchers of a channel.
        now_ms: returns the time in milliseconds.

    Attributes:
        leases: the leases of processes.
    """

    def __init__(
        self,
        publish: Callable[[str, PresenceDiff], None],
        now_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        self._publish = publish
        self._now_ms = now_ms
        self._channels: dict[str, _Entries] = {}
        self._sweep_at = 0
        self.leases = MemoryLeases(now_ms)

    def change(
        self, channel: str, changes: Mapping[str, bytes], max_entries: int
    ) -> PresenceChange:
        """See `SupportsPresence.change_presence`."""
        now = self._now_ms()
        self._sweep(now)
        known = self._channels.get(channel)
        kept = known or _Entries()
        made: dict[str, bytes] = {}
        refused = []
        for field, value in changes.items():
            if not value and field in kept.entries:
                del kept.entries[field]
                made[field] = value
        for field, value in changes.items():
            before = kept.entries.get(field)
            if not value or value == before:
                continue
            if before is None and len(kept.entries) >= max_entries:
                refused.append(field)
                continue
            kept.entries[field] = made[field] = value
        if known is None and not made:
            return PresenceChange(b"", 0, 0, tuple(refused))
        self._channels[channel] = kept
        kept.expires_ms = now + (KEEP_SECONDS if kept.entries else EMPTY_SECONDS) * 1000
        if made:
            kept.version += 1
            self._publish(channel, PresenceDiff(kept.epoch, kept.version, made))
        return PresenceChange(kept.epoch, kept.version, len(made), tuple(refused))

    def snapshot(self, channel: str) -> PresenceSnapshot:
        """The entries of a channel."""
        self._sweep(self._now_ms())
        kept = self._channels.get(channel)
        if kept is None:
            return ABSENT
        return PresenceSnapshot(kept.epoch, kept.version, dict(kept.entries))

    def forget(self, channel: str) -> None:
        """Lose the entries of a channel, as a server that is restarted; for tests."""
        self._channels.pop(channel, None)

    def _sweep(self, now: int) -> None:
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_MS
        for channel, kept in list(self._channels.items()):
            if kept.expires_ms <= now:
                del self._channels[channel]


class MemoryLeases:
    """The leases of processes. A lease has ended if its time is not above the clock."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._ends: dict[str, int] = {}
        self._last: int | None = None

    def call(
        self,
        process: str,
        action: LeaseAction,
        lease_ms: int,
        grace_ms: int,
        adopt: Collection[str],
    ) -> LeaseReply:
        """See `SupportsPresence.lease`."""
        ends = self._ends
        now = self._begin(lease_ms)
        known = ends.get(process)
        state = LeaseState.UNKNOWN
        if known is not None:
            state = LeaseState.OK if known > now else LeaseState.ENDED
        if action is LeaseAction.NEW and state is LeaseState.UNKNOWN:
            state = LeaseState.OK
        if action is LeaseAction.END and state is not LeaseState.ENDED:
            ends[process] = now + grace_ms
            state = LeaseState.OK if grace_ms > 0 else LeaseState.ENDED
        elif state is LeaseState.OK and action in (LeaseAction.NEW, LeaseAction.RENEW):
            ends[process] = now + lease_ms
        for one in adopt:
            ends.setdefault(one, now + lease_ms)
        for one, end in list(ends.items()):
            if end < now - FORGET_MS:
                del ends[one]
        ended = sorted((end, one) for one, end in ends.items() if end <= now)
        old = sum(end < now - 2 * lease_ms for end, _ in ended)
        surplus = max(0, min(len(ended) - ENDED_LEASES, old), len(ended) - ALL_ENDED)
        for _, one in ended[:surplus]:
            del ends[one]
        dead = frozenset(one for _, one in ended[surplus:])
        soonest = min((end for end in ends.values() if end > now), default=None)
        return LeaseReply(state, now, dead, soonest)

    def _begin(self, lease_ms: int) -> int:
        """The time of this call. After a pause or a jump of the clock, the living get a lease."""
        now = self._now_ms()
        last = now if self._last is None else self._last
        if now < last and last - now < STEP_BACK_MS:
            now = last
        if now < last or now - last > lease_ms / 2:
            for process, end in self._ends.items():
                if end > last:
                    whole = now + lease_ms
                    self._ends[process] = whole if now < last else max(whole, end)
                elif now < last:
                    self._ends[process] = now
        self._last = now
        return now


class MemoryPresenceCalls(MemoryMember):
    """The methods of `SupportsPresence`."""

    lease_servers: Sequence[str] = (ONLY_SERVER,)

    def lease_server_of(self, channel: str) -> str:
        """See `SupportsPresence`."""
        return ONLY_SERVER

    async def change_presence(
        self, channel: str, changes: Mapping[str, bytes], *, max_entries: int = MAX_ENTRIES
    ) -> PresenceChange:
        """See `SupportsPresence`."""
        check_changes(changes)
        with self._open_bus() as bus:
            return bus.presence.change(channel, changes, max_entries)

    async def watch_presence(self, channels: Sequence[str]) -> None:
        """See `SupportsPresence`."""
        await self._subscribe_and_read(
            {watch_of(channel): self._read_watch(channel) for channel in channels}
        )

    async def unwatch_presence(self, channels: Sequence[str]) -> None:
        """See `SupportsPresence`."""
        await self.unsubscribe([watch_of(channel) for channel in channels])

    def request_presence(self, channel: str) -> None:
        """See `SupportsPresence`."""
        self._read_in_stream(watch_of(channel), self._read_watch(channel))

    def _read_watch(self, channel: str) -> Callable[[], SnapshotItem]:
        return lambda: SnapshotItem(self._bus.presence.snapshot(channel))

    async def read_presence(self, channels: Sequence[str]) -> dict[str, PresenceSnapshot]:
        """See `SupportsPresence`."""
        with self._open_bus() as bus:
            return {channel: bus.presence.snapshot(channel) for channel in channels}

    async def lease(
        self,
        server: str,
        process: str,
        action: LeaseAction,
        *,
        lease_seconds: float,
        grace_seconds: float = 0,
        adopt: Collection[str] = (),
    ) -> LeaseReply:
        """See `SupportsPresence`."""
        check_lease(process, lease_seconds, grace_seconds, adopt)
        if server not in self.lease_servers:
            raise ValueError(f"{server!r} is no lease server")
        with self._open_bus() as bus:
            return bus.presence.leases.call(
                process, action, round(lease_seconds * 1000), round(grace_seconds * 1000), adopt
            )
