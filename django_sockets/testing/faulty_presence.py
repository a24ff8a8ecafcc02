"""The presence of a `FaultyBroker`: diffs that are lost, and calls that fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar, cast

from ..broker import PresenceSink, Sink, SupportsPresence
from ..errors import PresenceError
from ..presence import (
    MAX_ENTRIES,
    LeaseAction,
    LeaseReply,
    PresenceChange,
    PresenceDiff,
    PresenceSnapshot,
)
from ..url import BrokerURL

__all__ = ["LOST_PRESENCE_REPLY", "REFUSED_PRESENCE", "FaultyPresence"]

T = TypeVar("T")

REFUSED_PRESENCE = "presence refused"
"""A call fails, and the server has done nothing."""
LOST_PRESENCE_REPLY = "presence reply lost"
"""The server has carried the call out, and the caller gets an error with `unknown`."""


class FaultyPresence:
    """The methods of `SupportsPresence` and of `PresenceSink`, with faults.

    Args:
        broker: the broker that has the presence.
        sink: the receiver of diffs and snapshots.
        next_fault: returns the fault of one call: `REFUSED_PRESENCE`, `LOST_PRESENCE_REPLY` or "".
        next_diff: returns whether the next diff arrives.
    """

    def __init__(
        self,
        url: BrokerURL,
        broker: SupportsPresence,
        sink: Sink,
        next_fault: Callable[[], str],
        next_diff: Callable[[], bool],
    ) -> None:
        self._url = url
        self._broker = broker
        self._sink = cast("PresenceSink", sink)
        self._next_fault = next_fault
        self._next_diff = next_diff
        self._watched: dict[str, None] = {}
        self.lease_servers = broker.lease_servers
        self.lease_server_of = broker.lease_server_of
        self.request_presence = broker.request_presence

    async def change_presence(
        self, channel: str, changes: Mapping[str, bytes], *, max_entries: int = MAX_ENTRIES
    ) -> PresenceChange:
        """See `SupportsPresence`."""
        return await self._call(
            [channel],
            lambda: self._broker.change_presence(channel, changes, max_entries=max_entries),
        )

    async def watch_presence(self, channels: Sequence[str]) -> None:
        """See `SupportsPresence`."""
        self._watched.update(dict.fromkeys(channels))
        await self._broker.watch_presence(channels)

    async def unwatch_presence(self, channels: Sequence[str]) -> None:
        """See `SupportsPresence`."""
        for channel in channels:
            self._watched.pop(channel, None)
        await self._broker.unwatch_presence(channels)

    async def read_presence(self, channels: Sequence[str]) -> dict[str, PresenceSnapshot]:
        """See `SupportsPresence`."""
        return await self._call(channels, lambda: self._broker.read_presence(channels))

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
        return await self._call(
            [],
            lambda: self._broker.lease(
                server,
                process,
                action,
                lease_seconds=lease_seconds,
                grace_seconds=grace_seconds,
                adopt=adopt,
            ),
        )

    async def _call(self, channels: Sequence[str], call: Callable[[], Awaitable[T]]) -> T:
        fault = self._next_fault()
        if fault == REFUSED_PRESENCE:
            raise PresenceError(self._url, "refused by a test", channels=channels)
        result = await call()
        if fault == LOST_PRESENCE_REPLY:
            raise PresenceError(self._url, "lost by a test", channels=channels, unknown=True)
        return result

    # The sink of the real broker

    def presence_snapshot(self, channel: str, snapshot: PresenceSnapshot | None) -> None:
        """See `PresenceSink`."""
        self._sink.presence_snapshot(channel, snapshot)

    def presence_diff(self, channel: str, diff: PresenceDiff) -> None:
        """See `PresenceSink`."""
        if self._next_diff():
            self._sink.presence_diff(channel, diff)

    def presence_lost(self, channels: Sequence[str], reason: str) -> None:
        """See `PresenceSink`."""
        self._sink.presence_lost(channels, reason)

    def signal_lost(self, reason: str) -> None:
        """Tell the hub that diffs of every watched channel may be missing."""
        if self._watched:
            self._sink.presence_lost(list(self._watched), reason)
