"""One watched channel: its replica, its watchers, and the reads that bring the replica up to date.

The states of a channel:

- settled: the replica is the state of the server, and each diff is applied to it.
- reading: a read is open. Its snapshot contains every diff before it, so these are dropped.
- repairing: after a loss or a new epoch, the own entries are written again first. The read follows,
  so that nobody sees the own members leave.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from ...delivery.channel import PresenceSubscriber
from ...delivery.events import Presence
from ...errors import PresenceError
from ...presence import PresenceDiff, PresenceSnapshot
from .context import RETRY_SECONDS, Context
from .replica import Replica

__all__ = ["WatchOwner", "WatchedChannel"]


class WatchOwner(Protocol):
    """The presence of the hub, as a watched channel knows it."""

    async def write_again(self, channel: str) -> None:
        """Write the own entries of a channel again, once."""

    def differing(self, channel: str, entries: Mapping[str, bytes]) -> list[str]:
        """The own fields that differ from a state of the server."""

    def restore(self, channel: str, fields: Iterable[str]) -> None:
        """Write own fields again, unless the lease of this process has ended."""

    def changed(
        self,
        watched: WatchedChannel,
        changes: Mapping[str, bytes],
        event: Presence | None,
        *,
        first: bool = False,
    ) -> None:
        """The replica has changed.

        Args:
            changes: field -> value, or `b""`.
            event: the change of the members, if there is one.
            first: it was read for the first time.
        """


class State(enum.Enum):
    """See the docstring of the module."""

    SETTLED = enum.auto()
    READING = enum.auto()
    REPAIRING = enum.auto()


class WatchedChannel:
    """The members of one channel.

    Attributes:
        name: of the channel.
        replica: the entries of the channel.
        watchers: the subscribers that are told of changes.
        arriving: number of calls that are about to add a watcher.
    """

    def __init__(self, name: str, owner: WatchOwner, context: Context) -> None:
        self.name = name
        self.replica = Replica(name)
        self.watchers: dict[PresenceSubscriber, None] = {}
        self.arriving = 0
        self._owner = owner
        self._context = context
        self._state = State.READING
        self._was_read = False
        self._repaired = False
        self._lost_again = False
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def settled(self) -> bool:
        """The replica is the state of the server, as far as it is known."""
        return self._state is State.SETTLED

    async def until_settled(self) -> None:
        """Wait for the next read, if one is open.

        Raises:
            PresenceError, SubscribeError, BrokerClosed: it has failed.
        """
        if not self.settled:
            future = self._context.new_future()
            self._waiting.append(future)
            await future

    def fail(self, problem: Exception) -> None:
        """Let those that wait fail."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_exception(problem)
                future.exception()  # Its owner may have been cancelled.

    def members(self, without: Any = ()) -> dict[str, list[Any]]:
        """See `Replica.members`."""
        return self.replica.members(without)

    # The stream

    def take_snapshot(self, snapshot: PresenceSnapshot | None) -> None:
        """Take the reply to a read."""
        if self._state is State.REPAIRING:
            return  # Another one follows.
        if snapshot is None:
            self._state = State.READING
            problem = "the server did not answer, or refused"
            self.fail(PresenceError(self._context.url, problem, channels=[self.name]))
            self._context.after(RETRY_SECONDS, self._read_if_open)
            return
        missing = self._owner.differing(self.name, snapshot.entries)
        if missing and not self._repaired:
            self._repair()
            return
        first, self._was_read = not self._was_read, True
        self._repaired = False
        self._state = State.SETTLED
        changes = self.replica.difference(snapshot)
        event = self.replica.take_snapshot(snapshot, changes)
        self._owner.changed(self, changes, event, first=first)
        if missing:
            self._owner.restore(self.name, missing)
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def take_diff(self, diff: PresenceDiff) -> None:
        """Take a change."""
        if not self.settled:
            return  # The open read has it.
        follows = self.replica.follows(diff)
        if follows and not self.replica.has_epoch(diff.epoch):
            # The server has perhaps lost own entries of which this replica knew nothing.
            follows = not self._owner.differing(self.name, diff.changes)
        if follows:
            event = self.replica.take_diff(diff)
            self._owner.changed(self, diff.changes, event)
        elif follows is None:
            # The read behind the watch has every earlier diff. A server that was replaced by one
            # without its last changes counts from an earlier version.
            self.outdated()
        else:
            self._context.counters.presence_resyncs += 1
            if self.replica.has_epoch(diff.epoch):
                self._read()
            else:
                self._repair()

    def lost(self) -> None:
        """Diffs may be missing."""
        self._context.counters.presence_resyncs += 1
        self._repair()

    def outdated(self) -> None:
        """The server has other entries than the replica, and no diff will follow."""
        if self.settled:
            self._context.counters.presence_resyncs += 1
            self._read()

    def _repair(self) -> None:
        if self._state is State.REPAIRING:
            self._lost_again = True
            return
        self._state = State.REPAIRING
        self._context.spawn(self._write_and_read(), "read the members of a channel again")

    async def _write_and_read(self) -> None:
        try:
            while True:
                self._lost_again = False
                await self._owner.write_again(self.name)
                if not self._lost_again:
                    return
        finally:
            self._repaired = True
            self._read()

    def _read(self) -> None:
        self._state = State.READING
        if not self._context.closed:
            self._context.broker.request_presence(self.name)

    def _read_if_open(self) -> None:
        if self._state is State.READING:
            self._read()
