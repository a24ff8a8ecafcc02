"""The entries of one hub: what should be on the server, and the writes that bring it there.

A call changes the wanted state of a channel and marks fields to be written. At most one write of a
channel is in flight, so that its commands stay in order. What is marked meanwhile goes with the
next write. A write that has failed is repeated until the server has the wanted state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from itertools import islice
from typing import Any

from ...errors import BrokerClosed, BrokerError, PresenceFull
from .context import RETRY_SECONDS, Context
from .values import key_of

__all__ = ["OwnEntries"]

FIELDS_AT_ONCE = 1000
"""The most fields of one write: the server does nothing else meanwhile."""


class _Channel:
    """The own entries on one channel.

    Attributes:
        values: entry -> its value. Read only.
        entries_of: key of a member -> its entries.
        marked: the fields to be written.
        writing: the fields of the write in flight.
        waiting: field -> futures of its next write.
    """

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.entries_of: dict[str, dict[str, None]] = {}
        self.marked: dict[str, None] = {}
        self.writing: Mapping[str, bytes] = {}
        self.waiting: dict[str, list[asyncio.Future[None]]] = {}
        self.task: asyncio.Task[None] | None = None

    def is_writing(self, field: str) -> bool:
        """Whether a field is about to be written."""
        return field in self.marked or field in self.writing

    def set(self, entry: str, value: bytes | None) -> bytes | None:
        """Change or remove a value. Returns the one before."""
        before = self.values.pop(entry, None)
        if before is not None:
            entries = self.entries_of[key_of(before)]
            del entries[entry]
            if not entries:
                del self.entries_of[key_of(before)]
        if value is not None:
            self.values[entry] = value
            self.entries_of.setdefault(key_of(value), {})[entry] = None
        return before


class OwnEntries:
    """The entries of one hub.

    Args:
        process_for: returns the present process id for a channel.
        emptied: called with a channel on which the hub has no entry any more.
    """

    def __init__(
        self,
        context: Context,
        process_for: Callable[[str], str],
        emptied: Callable[[str], object],
    ) -> None:
        self._context = context
        self._process_for = process_for
        self._emptied = emptied
        self._channels: dict[str, _Channel] = {}

    def __contains__(self, channel: str) -> bool:
        return channel in self._channels

    @property
    def count(self) -> int:
        """The number of entries on all channels. For any thread."""
        # `copy` is one step, also if the event loop changes the dict meanwhile.
        return sum(len(own.values) for own in self._channels.copy().values())

    @property
    def channels(self) -> Iterable[str]:
        """The channels with entries, or with fields to be written."""
        return self._channels.keys()

    def channels_of(self, entry: str) -> list[str]:
        """The channels with an entry of this name."""
        return [name for name, own in self._channels.items() if entry in own.values]

    def key_of(self, channel: str, entry: str) -> str | None:
        """The key of the member that an entry belongs to; None if there is no such entry."""
        own = self._channels.get(channel)
        value = None if own is None else own.values.get(entry)
        return None if value is None else key_of(value)

    def entries_of(self, channel: str, key: str) -> Iterable[str]:
        """The entries of a member on a channel."""
        own = self._channels.get(channel)
        return () if own is None else own.entries_of.get(key, ())

    def has_values(self, channel: str) -> bool:
        """Whether there are entries on a channel."""
        own = self._channels.get(channel)
        return own is not None and bool(own.values)

    def put(self, channel: str, entry: str, value: bytes) -> Coroutine[Any, Any, None]:
        """Put an entry; await the result. If it fails, the entry becomes what it was before.

        Raises:
            PresenceError, BrokerClosed: see `SupportsPresence.change_presence`.
        """
        own = self._channels.get(channel)
        if own is None:
            own = self._channels[channel] = _Channel()
        before = own.set(entry, value)
        return self._finish(channel, own, entry, before, self._written(channel, own, entry))

    async def _finish(
        self,
        channel: str,
        own: _Channel,
        entry: str,
        before: bytes | None,
        written: asyncio.Future[None],
    ) -> None:
        value = own.values.get(entry)
        try:
            await written
        except BaseException as exc:
            # Another call may have changed the entry meanwhile.
            if own.values.get(entry) is value:
                own.set(entry, before)
                if not isinstance(exc, PresenceFull) or before is not None:
                    self._mark(channel, own, self._field(channel, entry))
                elif not (own.values or own.marked or own.task):
                    self._forget(channel, own)
            raise

    def remove(self, channel: str, entry: str) -> asyncio.Future[None] | None:
        """Remove an entry.

        Returns:
            A future of the first attempt, which need not be awaited; None if there was none.
        """
        own = self._channels.get(channel)
        if own is None or own.set(entry, None) is None:
            return None
        return self._written(channel, own, entry)

    def replace(self, channel: str, process: str) -> None:
        """Write all entries under the present process id, and remove those of an older one."""
        own = self._channels.get(channel)
        if own is None:
            return
        for entry in own.values:
            # Both in one write, so that nobody sees the member leave.
            self._mark(channel, own, self._field(channel, entry))
            self._mark(channel, own, f"{process}:{entry}")

    def write_again(self, channel: str) -> asyncio.Future[None] | None:
        """Write all entries again; returns a future of the attempt, or None without entries."""
        own = self._channels.get(channel)
        if own is None or not own.values:
            return None
        last = None
        for last in own.values:
            self._mark(channel, own, self._field(channel, last))
        return self._written(channel, own, last) if last is not None else None

    def differing(self, channel: str, entries: Mapping[str, bytes]) -> list[str]:
        """The fields of this process that are missing in a state of the server, or are different.

        Fields that are being written are left out.
        """
        own = self._channels.get(channel)
        if own is None:
            return []
        prefix = self._process_for(channel) + ":"
        return [
            field
            for entry, value in own.values.items()
            if entries.get(field := prefix + entry) != value and not own.is_writing(field)
        ]

    def undone(self, channel: str, changes: Mapping[str, bytes]) -> list[str]:
        """The fields of this process that the server has now, and that should be different.

        Args:
            changes: field -> value, or `b""` for one that was removed.
        """
        own = self._channels.get(channel)
        prefix = self._process_for(channel) + ":"
        values: Mapping[str, bytes] = {} if own is None else own.values
        return [
            field
            for field, value in changes.items()
            if field.startswith(prefix)
            and value != values.get(field[len(prefix) :], b"")
            and not (own is not None and own.is_writing(field))
        ]

    def mark(self, channel: str, fields: Iterable[str]) -> None:
        """Write these fields again."""
        own = self._channels.setdefault(channel, _Channel())
        for field in fields:
            self._mark(channel, own, field)

    async def settle(self) -> None:
        """Wait for the writes in flight, and those that are marked, once."""
        tasks = [own.task for own in self._channels.values() if own.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    # Writing

    def _field(self, channel: str, entry: str) -> str:
        return f"{self._process_for(channel)}:{entry}"

    def _written(self, channel: str, own: _Channel, entry: str) -> asyncio.Future[None]:
        field = self._field(channel, entry)
        future = self._context.new_future()
        own.waiting.setdefault(field, []).append(future)
        self._mark(channel, own, field)
        return future

    def _mark(self, channel: str, own: _Channel, field: str) -> None:
        own.marked[field] = None
        self._begin(channel, own)

    def _begin(self, channel: str, own: _Channel) -> None:
        if own.task is None and own.marked and not self._context.closed:
            # The task begins in the next turn of the loop: calls of this turn share its command.
            own.task = self._context.spawn(self._write(channel, own), "write own entries")

    async def _write(self, channel: str, own: _Channel) -> None:
        failed = False
        try:
            while own.marked and not failed:
                failed = not await self._write_some(channel, own)
        finally:
            own.task = None
            if not (own.values or own.marked):
                self._forget(channel, own)
        if failed:
            self._context.after(RETRY_SECONDS, lambda: self._begin(channel, own))

    async def _write_some(self, channel: str, own: _Channel) -> bool:
        """Write the first marked fields; False if the server did not take them."""
        prefix = self._process_for(channel) + ":"
        fields = list(islice(own.marked, FIELDS_AT_ONCE))
        changes = {}
        for field in fields:
            del own.marked[field]
            known = field.startswith(prefix)
            changes[field] = own.values.get(field[len(prefix) :], b"") if known else b""
        waiting = {field: own.waiting.pop(field, []) for field in fields}
        own.writing = changes
        limit = self._context.url.options.presence_members
        problem: BaseException | None = None
        refused: tuple[str, ...] = ()
        try:
            result = await self._context.broker.change_presence(channel, changes, max_entries=limit)
            refused = result.refused
        except BaseException as exc:
            problem = exc
            own.marked = dict.fromkeys(fields) | own.marked
            if not isinstance(exc, BrokerError):
                raise
            self._context.failed("write own entries", exc)
        finally:
            own.writing = {}
            for field, futures in waiting.items():
                error = problem
                if field in refused:
                    error = PresenceFull(self._context.url, channel, limit)
                _settle(futures, error or None, self._context)
        return problem is None

    def _forget(self, channel: str, own: _Channel) -> None:
        if self._channels.get(channel) is own:
            del self._channels[channel]
            self._emptied(channel)


def _settle(
    futures: Iterable[asyncio.Future[None]], problem: BaseException | None, context: Context
) -> None:
    for future in futures:
        if future.done():
            continue
        if problem is None:
            future.set_result(None)
        else:
            if not isinstance(problem, Exception):
                problem = BrokerClosed(context.url)  # The task was cancelled.
            future.set_exception(problem)
            future.exception()  # Its owner may not wait for it.
