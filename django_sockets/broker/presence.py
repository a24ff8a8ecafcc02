"""The ability to keep the entries of channels and the leases of processes, and their receiver."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from ..presence import (
    MAX_ENTRIES,
    LeaseAction,
    LeaseReply,
    PresenceChange,
    PresenceDiff,
    PresenceSnapshot,
)
from .sink import Sink

__all__ = ["PresenceSink", "SupportsPresence"]


@runtime_checkable
class PresenceSink(Sink, Protocol):
    """A receiver of messages and of the presence of watched channels.

    The broker makes all calls on its event loop. For one channel, they come in the order of the
    server's stream, also relative to the messages of the channel with the same name. The methods
    return at once. An error of a method is logged, and `presence_lost` follows.
    """

    def presence_snapshot(self, channel: str, snapshot: PresenceSnapshot | None) -> None:
        """Take the reply to a read of a watched channel.

        The snapshot contains every diff before it, and the diffs behind it follow on its version.
        It is the state of the server, also if its version is lower than that of a diff before it.

        Args:
            snapshot: None if the server did not answer within 5 seconds, or refused. The channel
                stays watched. The reason is logged.
        """

    def presence_diff(self, channel: str, diff: PresenceDiff) -> None:
        """Take a change of a watched channel.

        A diff whose version is not above that of the last snapshot or diff of its epoch is known
        already. If the version is higher by more than 1, or the epoch is another one, changes are
        missing: call `request_presence`.
        """

    def presence_lost(self, channels: Sequence[str], reason: str) -> None:
        """Take note that diffs of these watched channels may be missing at this point.

        As with `lost`, the broker has subscribed again. It does not read the channels by itself, so
        that the owner of entries can put them again first: call `request_presence`.
        """


@runtime_checkable
class SupportsPresence(Protocol):
    """A broker that keeps the entries of channels, and the leases of processes.

    `django_sockets.presence` describes the data. The entries of a channel are independent of its
    messages: neither a subscription nor a watch of the same channel affects the other one.

    The broker's sink must be a `PresenceSink` for `watch_presence`. `BrokerContract` checks this
    protocol on backends that have the methods.

    Attributes:
        lease_servers: opaque names of the 1..n servers that keep leases, one for each of several
            independent hosts. All processes see the same names. A process needs a lease at each
            server on whose channels it has entries.
    """

    lease_servers: Sequence[str]

    def lease_server_of(self, channel: str) -> str:
        """The lease server that tells which owners of entries on this channel are dead."""

    async def change_presence(
        self, channel: str, changes: Mapping[str, bytes], *, max_entries: int = MAX_ENTRIES
    ) -> PresenceChange:
        """Put and remove entries of a channel in one atomic step, and publish one diff of it.

        Only real changes count. A call without one publishes nothing and leaves the version
        unchanged, but renews the time for which the entries are kept. Removals come first. Calls
        for one channel reach the server in the order of the calls.

        Args:
            changes: field -> value, or `b""` to remove the entry; 1..n fields. Use at most some
                thousand in one call, because the server does nothing else meanwhile.
            max_entries: a new entry is refused if the channel has so many. Changes of entries, and
                removals, are never refused.

        Raises:
            PresenceError: nothing was changed; or it is `unknown` whether it was. Repeating the
                call does no harm, unless the same fields were changed meanwhile.
            BrokerClosed: after `aclose`.
            ValueError: a field names no process.
        """

    async def watch_presence(self, channels: Sequence[str]) -> None:
        """Subscribe to the diffs of 1..n channels, and read each one behind its subscription.

        The call returns when the server has acknowledged every channel, and the sink has got the
        first snapshot of each. After the loss of a connection, the broker subscribes again and
        calls `presence_lost`. A channel that is watched already is read again.

        Raises:
            SubscribeError, BrokerClosed: see `Broker.subscribe`.
        """

    async def unwatch_presence(self, channels: Sequence[str]) -> None:
        """End the watch. The sink gets nothing of these channels after the call began."""

    def request_presence(self, channel: str) -> None:
        """Read a watched channel; the snapshot goes to the sink. It replaces an open read.

        Without a connection, the read follows behind the next subscription of the channel. Exactly
        one snapshot follows, within 5 seconds, unless the channel is unwatched before. The call
        does nothing for a channel that is not watched.
        """

    async def read_presence(self, channels: Sequence[str]) -> dict[str, PresenceSnapshot]:
        """Read 1..n channels outside of the stream, without a watch.

        It costs one round trip per server.

        Raises:
            PresenceError: for some channels, the server did not answer in
                `publish_timeout_seconds` or refused.
            BrokerClosed: after `aclose`.
        """

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
        """Begin, renew or end the lease of a process, and look which processes are dead.

        All times are those of the server's clock. Nobody could renew while the server was away. So
        if no process has called for more than half a lease, or if the clock went back, then every
        lease that had not ended at the last call has at least `lease_seconds` from now.

        Ended leases are forgotten after an hour. If there are more than `presence.ENDED_LEASES`,
        the oldest are forgotten earlier, except those of the last two leases; above
        `presence.ALL_ENDED`, these are forgotten, too. A forgotten process with entries is adopted
        again, and is dead one lease later.

        Args:
            server: one of `lease_servers`.
            process: an id of one incarnation of a process (`presence.check_process`). An id whose
                lease has ended is never used again.
            lease_seconds: 0.001 to 3600, and the same in all processes.
            grace_seconds: see `LeaseAction.END`; 0 to 3600.
            adopt: at most `presence.ADOPTED_AT_ONCE` ids that own entries. The server gives a lease
                to those that it does not know, so that they count as dead when nobody renews it.

        Raises:
            PresenceError: nothing was changed; or it is `unknown` whether it was. Repeating the
                call does no harm.
            BrokerClosed: after `aclose`.
            ValueError: an argument is not valid.
        """
