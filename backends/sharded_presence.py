"""The presence on several independent hosts: each host keeps its channels, and leases of its own.

A process needs a lease at each host. If a host is down, only the entries of its channels are
affected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from ..broker import SupportsPresence
from ..errors import PresenceError
from ..presence import (
    MAX_ENTRIES,
    LeaseAction,
    LeaseReply,
    PresenceChange,
    PresenceSnapshot,
)
from ..url import BrokerURL
from .host_reads import read_from_hosts
from .host_subscriptions import HostSubscriptions

__all__ = ["ShardedPresence"]


class ShardedPresence:
    """The methods of `SupportsPresence` for several hosts that all have the ability.

    Args:
        parts: one broker for each of `url.shards`.
        pick: returns the index of the part of a channel.
        by_part: returns the index of a part -> indexes in the channels.
        check_open: raises BrokerClosed after `aclose`.

    Attributes:
        lease_servers: see `SupportsPresence`.
    """

    def __init__(
        self,
        url: BrokerURL,
        parts: Sequence[SupportsPresence],
        pick: Callable[[str], int],
        by_part: Callable[[Iterable[str]], Mapping[int, list[int]]],
        check_open: Callable[[], None],
    ) -> None:
        self._url = url
        self._parts = parts
        self._pick = pick
        self._by_part = by_part
        self._check_open = check_open
        self._watches = HostSubscriptions(url, by_part, self._unwatch_at)
        self._servers = {
            _server_name(server, shard): (part, server)
            for shard, part in zip(url.shards, parts, strict=True)
            for server in part.lease_servers
        }
        self.lease_servers = tuple(self._servers)

    def lease_server_of(self, channel: str) -> str:
        """See `SupportsPresence`."""
        number = self._pick(channel)
        server = self._parts[number].lease_server_of(channel)
        return _server_name(server, self._url.shards[number])

    async def change_presence(
        self, channel: str, changes: Mapping[str, bytes], *, max_entries: int = MAX_ENTRIES
    ) -> PresenceChange:
        """See `SupportsPresence`."""
        self._check_open()
        part = self._parts[self._pick(channel)]
        return await part.change_presence(channel, changes, max_entries=max_entries)

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
        self._check_open()
        if server not in self._servers:
            raise ValueError(f"{server!r} is no lease server of {self._url}")
        part, name = self._servers[server]
        return await part.lease(
            name,
            process,
            action,
            lease_seconds=lease_seconds,
            grace_seconds=grace_seconds,
            adopt=adopt,
        )

    async def watch_presence(self, channels: Sequence[str]) -> None:
        """See `SupportsPresence`."""
        self._check_open()
        await self._watches.subscribe(channels, self._watch_at)

    async def _watch_at(self, number: int, channels: list[str]) -> None:
        await self._parts[number].watch_presence(channels)

    async def unwatch_presence(self, channels: Sequence[str]) -> None:
        """See `SupportsPresence`."""
        await self._watches.unsubscribe(channels)

    async def _unwatch_at(self, number: int, channels: list[str]) -> None:
        await self._parts[number].unwatch_presence(channels)

    def request_presence(self, channel: str) -> None:
        """See `SupportsPresence`."""
        self._parts[self._pick(channel)].request_presence(channel)

    async def read_presence(self, channels: Sequence[str]) -> dict[str, PresenceSnapshot]:
        """See `SupportsPresence`."""
        self._check_open()
        return await read_from_hosts(
            self._url, channels, self._by_part, self._read_at, PresenceError
        )

    async def _read_at(self, number: int, channels: list[str]) -> dict[str, PresenceSnapshot]:
        return await self._parts[number].read_presence(channels)


def _server_name(server: str, shard: BrokerURL) -> str:
    return f"{server} of {shard.identity}"
