"""The methods of `SupportsPresence` for brokers on servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar

from ...errors import BrokerClosed, PresenceError, SubscribeError
from ...presence import (
    MAX_ENTRIES,
    LeaseAction,
    LeaseReply,
    PresenceChange,
    PresenceSnapshot,
    check_changes,
    check_lease,
)
from ...url import BrokerURL
from ..watches import watch_of
from .commands import leases_key
from .open_reads import OpenReads
from .parser import ReplyError
from .pipeline import NotSent, OutcomeUnknown
from .presence_reads import PresenceRead
from .presence_scripts import (
    CHANGE,
    LEASE,
    change_arguments,
    change_of,
    lease_arguments,
    lease_of,
    published_diff,
    snapshot_of,
)
from .queries import Queries, Query, Unanswered
from .routes import Route
from .script_runner import ScriptRunner
from .scripts import surely_refused
from .subscriptions import Subscriptions

__all__ = ["PresenceCalls"]

Result = TypeVar("Result")
SNAPSHOT = Query(snapshot_of)
ONLY_SERVER = "leases"


class PresenceCalls:
    """The methods of `SupportsPresence`. A broker inherits them and sets the attributes below.

    The subscriptions have the watch of a channel beside the channel itself (`watches.watch_of`).
    """

    url: BrokerURL
    lease_servers: Sequence[str] = (ONLY_SERVER,)
    _name: Callable[[str], bytes]
    _scripts: ScriptRunner
    _subscriptions: Subscriptions
    _reads: OpenReads
    _queries: Queries

    async def _publish_command(self) -> bytes:
        """PUBLISH or SPUBLISH. Raises NotSent if it cannot be learned."""
        raise NotImplementedError

    def lease_server_of(self, channel: str) -> str:
        """See `SupportsPresence`."""
        return ONLY_SERVER

    async def change_presence(
        self, channel: str, changes: Mapping[str, bytes], *, max_entries: int = MAX_ENTRIES
    ) -> PresenceChange:
        """See `SupportsPresence`."""
        check_changes(changes)
        self._subscriptions.check_open()
        name = self._name(watch_of(channel))

        async def run() -> PresenceChange:
            verb = await self._publish_command()
            arguments = change_arguments(verb, name, changes, max_entries)
            sources: list[Route] = []
            reply = await self._scripts.run(CHANGE, [name], arguments, sources.append)
            change, names = change_of(reply, changes)
            for source in sources if change.changed else ():
                await _publish_at(source, name, published_diff(change, names, changes))
            return change

        return await self._outcome([channel], run())

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
        self._subscriptions.check_open()
        if server not in self.lease_servers:
            raise ValueError(f"{server!r} is no lease server of {self.url}")
        key = leases_key(self.url.options.prefix.encode())
        arguments = lease_arguments(process, action, lease_seconds, grace_seconds, adopt)

        async def run() -> LeaseReply:
            return lease_of(await self._scripts.run(LEASE, [key], arguments))

        return await self._outcome([], run())

    async def _outcome(self, channels: Sequence[str], call: Awaitable[Result]) -> Result:
        try:
            return await call
        except NotSent as exc:
            raise PresenceError(self.url, str(exc), channels=channels) from exc.__cause__
        except OutcomeUnknown as exc:
            raise PresenceError(
                self.url, str(exc), channels=channels, unknown=True
            ) from exc.__cause__
        except ReplyError as exc:
            # The first write of a script fails if the memory is full, and nothing was done then.
            refused = surely_refused(exc) or str(exc).startswith("OOM")
            problem, unknown = f"the server refused it: {exc}", not refused
        except ValueError as exc:
            problem, unknown = str(exc), True
        raise PresenceError(self.url, problem, channels=channels, unknown=unknown)

    # Watching and reading

    async def watch_presence(self, channels: Sequence[str]) -> None:
        """See `SupportsPresence`."""
        self._subscriptions.check_open()
        watches = [watch_of(channel) for channel in channels]
        loop = asyncio.get_running_loop()
        given = []
        for watch in watches:
            read = PresenceRead(watch, self._name(watch))
            given.append(loop.create_future())
            read.waiting.append(given[-1])
            self._reads.open(read)
        try:
            await self._subscriptions.subscribe(watches, given)
        except BaseException as exc:
            # Another call may watch the same channel, and wait for the same read.
            unwatched = [watch for watch in watches if not self._subscriptions.has(watch)]
            self._reads.unsubscribed(map(self._name, unwatched))
            if isinstance(exc, SubscribeError):
                raise SubscribeError(self.url, exc.reason, channels=channels) from exc.__cause__
            raise

    async def unwatch_presence(self, channels: Sequence[str]) -> None:
        """See `SupportsPresence`."""
        watches = [watch_of(channel) for channel in channels]
        self._subscriptions.unsubscribe(watches)
        self._reads.unsubscribed(map(self._name, watches))

    def request_presence(self, channel: str) -> None:
        """See `SupportsPresence`."""
        watch = watch_of(channel)
        if self._subscriptions.has(watch):
            self._reads.open(PresenceRead(watch, self._name(watch)))
            self._subscriptions.read([watch])

    async def read_presence(self, channels: Sequence[str]) -> dict[str, PresenceSnapshot]:
        """See `SupportsPresence`."""
        self._subscriptions.check_open()
        names = {channel: self._name(watch_of(channel)) for channel in channels}
        commands = {channel: (name, (b"HGETALL", name)) for channel, name in names.items()}
        try:
            return await self._queries.read(SNAPSHOT, commands)
        except Unanswered as exc:
            error = PresenceError(self.url, str(exc), channels=exc.channels)
        raise error


async def _publish_at(source: Route, name: bytes, diff: bytes) -> None:
    """Publish a diff at the source of a slot that is moving, where all subscribers still are.

    If it fails, the watchers miss one diff. They read again at the next one, and at the latest when
    the slot has moved.
    """
    with contextlib.suppress(NotSent, OutcomeUnknown, BrokerClosed):
        await source.pipeline.submit([(source.pubsub.publish, name, diff)])
