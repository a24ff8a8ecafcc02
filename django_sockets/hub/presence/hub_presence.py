"""The presence of the channels of one hub: its own entries, and the members that it watches.

This module connects the parts: `own_entries` writes, `lease` keeps this process alive and knows the
dead, `watched_channel` follows the server, `reaper` removes the entries of the dead, and `grace`
delays the leave of connections that have ended. A hub makes it when presence is first used.

A hub also watches the channels on which it has entries, so that it notices if the server loses
them, and if a key returns in another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from ...deadlines import with_deadline
from ...delivery.channel import PresenceSubscriber
from ...delivery.events import Presence
from ...errors import BrokerError
from ...log import LogThrottle
from ...presence import PresenceDiff, PresenceSnapshot, process_of
from .context import Context
from .grace import Grace
from .lease import Lease
from .own_entries import OwnEntries
from .reaper import Reaper
from .replica import members_in
from .values import check_name, pack_value, read_value
from .watched_channel import WatchedChannel
from .watches import Watches

__all__ = ["HubPresence"]

logger = logging.getLogger("django_sockets")

WRITE_AGAIN_SECONDS = 3600.0
"""Interval at which the own entries are written again, so that the server keeps them."""
CLOSE_SECONDS = 5.0
"""The longest time that the end of a hub waits for its writes, and for the end of its leases."""
PROCESSES_REMEMBERED = 10_000


class Subscriptions(Protocol):
    """The subscriptions of the hub."""

    def channels_of(self, subscriber: Any) -> Collection[str]:
        """The channels of a subscriber."""


class HubPresence:
    """The entries of one hub, and the members of the channels that it watches.

    Args:
        subscriptions: of the hub.
    """

    def __init__(self, subscriptions: Subscriptions, context: Context) -> None:
        self._subscriptions = subscriptions
        self._context = context
        self._own = OwnEntries(context, self._process_for, self._close_if_unused)
        self._grace = Grace(context, self._own.remove)
        self._reaper = Reaper(context, self._read_again)
        self._leases: dict[str, Lease] = {}
        self._watches = Watches(self, context, self._own.__contains__)
        # Channel -> own fields that another process has changed.
        self._undone: dict[str, dict[str, None]] = {}
        self._adopted: set[str] = set()
        self._written_at = context.clock.time()
        self._throttle = LogThrottle(logger, context.url.options.log_interval_seconds)

    def stats(self) -> dict[str, int]:
        """The present numbers, as `Hub.stats` names them. For any thread."""
        return {"presence_members": self._own.count, "presence_watched": len(self._watches)}

    # Own entries

    async def track(self, channel: str, key: str, info: object, entry: str | None) -> None:
        """See `Hub.track`."""
        check_name(key, "key")
        entry = key if entry is None else check_name(entry, "entry")
        value = pack_value(key, info, self._context.url.options.max_presence_bytes)
        lease = self._lease_of(channel)
        if not lease.held:
            await lease.begin()
        old_key = self._own.key_of(channel, entry)
        was_leaving = old_key is not None and self._grace.keep(channel, old_key, entry)
        # In the same turn as the new entry, so that one command does both.
        self._grace.returned(channel, [key])
        writing = self._own.put(channel, entry, value)
        self._open(channel)
        try:
            await writing
        except BaseException:
            if was_leaving and old_key == self._own.key_of(channel, entry) is not None:
                self._grace.add(channel, old_key or "", entry)
            raise

    async def untrack(self, channel: str, entry: str) -> None:
        """See `Hub.untrack`."""
        key = self._own.key_of(channel, entry)
        if key is None:
            return
        self._grace.keep(channel, key, entry)
        written = self._own.remove(channel, entry)
        if written is not None:
            await asyncio.wait([written])

    def release(self, entry: str, channels: Iterable[str] | None) -> None:
        """See `Hub.release`."""
        for channel in self._own.channels_of(entry) if channels is None else list(channels):
            key = self._own.key_of(channel, entry)
            if key is None or self._grace.has(channel, key, entry):
                continue
            others = self._own.entries_of(channel, key)
            if any(o != entry and not self._grace.has(channel, key, o) for o in others):
                self._own.remove(channel, entry)  # The member stays.
            else:
                self._grace.add(channel, key, entry)

    # Members

    async def members(self, channel: str) -> dict[str, list[Any]]:
        """See `Hub.presence`."""
        watched, lease = self._watches.get(channel), self._lease_of(channel)
        if watched is not None and watched.settled:
            return watched.members(lease.dead)
        looking = self._context.spawn(lease.look(), "look which processes are dead")
        snapshots = await self._context.broker.read_presence([channel])
        await asyncio.wait([looking])
        entries = snapshots[channel].entries
        processes = {process_of(field) for field in entries} - {""}
        unknown = processes - self._adopted - {lease.process, *lease.dead}
        if unknown:
            if len(self._adopted) > PROCESSES_REMEMBERED:
                self._adopted.clear()
            self._adopted |= unknown
            self._context.spawn(lease.look(unknown), "adopt processes")
        dead = lease.dead
        return members_in(
            {field: value for field, value in entries.items() if process_of(field) not in dead}
        )

    async def watch(
        self, subscriber: PresenceSubscriber, channels: Iterable[str]
    ) -> dict[str, dict[str, list[Any]]]:
        """Tell a subscriber of all changes of the members of channels from now on.

        Returns:
            The present members of each channel.

        Raises:
            PresenceError, SubscribeError, BrokerClosed: it watches none of the new channels.
        """
        opened = [self._open(name) for name in channels]
        for watched in opened:
            watched.arriving += 1
        try:
            while True:
                late = next((one for one in opened if not one.settled), None)
                if late is None:
                    break
                await late.until_settled()
            own = self._subscriptions.channels_of(subscriber)
            for watched in opened:
                if watched.name in own:  # It may have left the channel meanwhile.
                    watched.watchers[subscriber] = None
            return {watched.name: watched.members() for watched in opened}
        finally:
            for watched in opened:
                watched.arriving -= 1
                self._close_if_unused(watched.name)

    def unwatch(self, subscriber: PresenceSubscriber, channels: Iterable[str]) -> None:
        """A subscriber has left channels."""
        for name in channels:
            watched = self._watches.get(name)
            if watched is not None and subscriber in watched.watchers:
                del watched.watchers[subscriber]
                self._close_if_unused(name)

    # The stream (`broker.PresenceSink`)

    def take_snapshot(self, channel: str, snapshot: PresenceSnapshot | None) -> None:
        """See `PresenceSink`."""
        watched = self._watches.get(channel)
        if watched is not None:
            watched.take_snapshot(snapshot)

    def take_diff(self, channel: str, diff: PresenceDiff) -> None:
        """See `PresenceSink`."""
        watched = self._watches.get(channel)
        if watched is not None:
            watched.take_diff(diff)

    def lost(self, channels: Iterable[str]) -> None:
        """See `PresenceSink`."""
        for name in channels:
            watched = self._watches.get(name)
            if watched is not None:
                watched.lost()

    # Watched channels

    def _open(self, channel: str) -> WatchedChannel:
        watched = self._watches.open(channel)
        self._lease_of(channel).start()
        return watched

    def _close_if_unused(self, channel: str) -> None:
        if self._watches.close_if_unused(channel):
            self._reaper.forget(channel)
            lease = self._lease_of(channel)
            if not any(self._lease_of(one.name) is lease for one in self._watches):
                lease.stop()

    def _read_again(self, channel: str) -> None:
        watched = self._watches.get(channel)
        if watched is not None:
            watched.outdated()

    async def write_again(self, channel: str) -> None:
        """See `WatchOwner`."""
        if not self._own.has_values(channel):
            return
        try:
            await self._lease_of(channel).confirm()  # What a dead process writes is removed again.
        except BrokerError:
            return  # Logged. The next renewal that succeeds finds out.
        written = self._own.write_again(channel)
        if written is not None:
            await asyncio.wait([written])

    def differing(self, channel: str, entries: Mapping[str, bytes]) -> list[str]:
        """See `WatchOwner`."""
        return self._own.differing(channel, entries)

    def restore(self, channel: str, fields: Iterable[str]) -> None:
        """See `WatchOwner`."""
        # Another process may have removed them, because the lease has ended: look first.
        self._undone.setdefault(channel, {}).update(dict.fromkeys(fields))
        self._lease_of(channel).check()

    def changed(
        self,
        watched: WatchedChannel,
        changes: Mapping[str, bytes],
        event: Presence | None,
        *,
        first: bool = False,
    ) -> None:
        """See `WatchOwner`."""
        name = watched.name
        lease = self._lease_of(name)
        undone = self._own.undone(name, changes)
        if undone:
            self.restore(name, undone)
        if self._grace and not first:
            self._grace.returned(name, self._keys_of_others(changes, lease.process))
        if lease.dead and any(
            value and process_of(field) in lease.dead for field, value in changes.items()
        ):
            self._reaper.look(name, watched.replica, lease.dead, lease.process)
        if event is None:
            return
        self._context.counters.presence_joined += len(event.joined)
        self._context.counters.presence_left += len(event.left)
        for subscriber in list(watched.watchers):
            try:
                subscriber.on_presence(event)
            except Exception as exc:
                text = "%s: a subscriber failed to take a change of members"
                url = self._context.url
                extra = {"broker": url, "channel": name}
                self._throttle.log(
                    logging.ERROR, "on_presence", text, url, exc_info=exc, extra=extra
                )

    @staticmethod
    def _keys_of_others(changes: Mapping[str, bytes], own: str) -> set[str]:
        """The keys of the entries that other processes have put."""
        found = (
            read_value(value)
            for field, value in changes.items()
            if value and process_of(field) != own
        )
        return {member[0] for member in found if member is not None}

    # Leases

    def _lease_of(self, channel: str) -> Lease:
        server = self._context.broker.lease_server_of(channel)
        lease = self._leases.get(server)
        if lease is None:
            lease = self._leases[server] = Lease(server, self, self._context)
        return lease

    def _process_for(self, channel: str) -> str:
        return self._lease_of(channel).process

    def _watched_at(self, lease: Lease) -> Sequence[WatchedChannel]:
        return [one for one in self._watches if self._lease_of(one.name) is lease]

    def others_at(self, lease: Lease) -> set[str]:
        """See `LeaseOwner`."""
        found: set[str] = set()
        for watched in self._watched_at(lease):
            found.update(watched.replica.processes)
        return found - {"", lease.process}

    def lease_checked(self, lease: Lease) -> None:
        """See `LeaseOwner`."""
        if lease.dead:
            for watched in self._watched_at(lease):
                self._reaper.look(watched.name, watched.replica, lease.dead, lease.process)
        for channel in [name for name in self._undone if self._lease_of(name) is lease]:
            self._own.mark(channel, self._undone.pop(channel))
        now = self._context.clock.time()
        if now - self._written_at >= WRITE_AGAIN_SECONDS:
            self._written_at = now
            for channel in list(self._own.channels):
                self._own.write_again(channel)

    def lease_replaced(self, lease: Lease, old: Collection[str]) -> None:
        """See `LeaseOwner`."""
        for channel in list(self._own.channels):
            if self._lease_of(channel) is lease:
                for process in old:
                    self._own.replace(channel, process)

    # The end

    async def aclose(self) -> None:
        """End the leases. Entries that are left are removed by others after the grace."""
        with contextlib.suppress(asyncio.TimeoutError):
            await with_deadline(CLOSE_SECONDS, self._own.settle())
        self._context.closed = True
        self._watches.end()
        await self._context.end_tasks()
        grace = self._context.url.options.presence_grace_seconds
        for lease in self._leases.values():
            channels = [name for name in self._own.channels if self._lease_of(name) is lease]
            stays = any(self._own.has_values(name) for name in channels)
            try:
                await with_deadline(CLOSE_SECONDS, lease.end(grace if stays else 0))
            except (BrokerError, asyncio.TimeoutError) as exc:
                url = self._context.url
                logger.debug(
                    "%s: ending the lease failed", url, exc_info=exc, extra={"broker": url}
                )
