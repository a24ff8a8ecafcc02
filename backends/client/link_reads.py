"""The reads on one subscribing connection, behind the subscriptions.

`LinkReads` writes the open reads of the broker (`open_reads`), a bounded number at a time, turns
the replies into items of the stream, and passes batches with other items than messages to the sink.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Iterable
from functools import partial
from typing import Any, cast

from ...broker import HistorySink, deliver_now
from ...loops import OfOneLoop
from ..watches import Deferred, DeliverNow, Item, deliver_mixed
from .commands import PubSubCommands
from .deadlines import ignore_result
from .open_reads import ORDINARY_BYTES, OpenRead, OpenReads, WrongServer
from .parser import ReplyError, is_push
from .pending_commands import PendingCommands
from .presence_reads import DiffReader, PresenceRead
from .scripts import is_missing
from .subscription_set import SubscriptionSet

__all__ = ["LinkReads"]

IN_FLIGHT = 16
"""Maximum number of reads under way on one connection, and, times `ORDINARY_BYTES`, the maximum
size of their replies, except that a single one may be larger. A server closes connections with too
much unread output (`client-output-buffer-limit pubsub`, 32 MiB by default)."""
RETRY_SECONDS = 0.1
"""Pause before a read that the server could not serve is repeated."""
LOADS = 3
"""How often a script is loaded for one read."""
NOT_NOW = ("ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "BUSY")


class LinkReads(OfOneLoop):
    """The reads on one connection.

    Args:
        pending: the commands of the connection.
        subscriptions: the subscriptions on the connection.
    """

    def __init__(
        self,
        reads: OpenReads,
        pending: PendingCommands,
        subscriptions: SubscriptionSet,
        pubsub: PubSubCommands,
    ) -> None:
        self._reads = reads
        self._pending = pending
        self._subscriptions = subscriptions
        self._pubsub = pubsub
        self._diffs = DiffReader(reads.url)
        # A batch that is not mixed has only messages.
        self._deliver_messages = cast(
            "DeliverNow", deliver_now(reads.sink, subscriptions.routed_channels)
        )
        self._queue: deque[bytes] = deque()
        self._in_flight = 0
        self._bytes_in_flight = 0
        self._loaded: set[tuple[bytes, ...]] = set()
        self._given: list[OpenRead] = []
        self._mixed = False

    def behind(self, names: Iterable[bytes]) -> None:
        """Write the open reads of these names; their SUBSCRIBE commands have been written."""
        connection = self._pending.connection
        if connection is None or not self._reads.wanted:
            return
        for name in names:
            read = self._reads.wanted.get(name)
            if read is None:
                continue
            if connection.protocol < 3:
                problem = "the server has no RESP3, so a subscribed connection cannot read"
                self._reads.give_up(read, problem)
                continue
            read.link = self
            self._queue.append(name)
        self._write()

    def behind_requested(self, name: bytes) -> None:
        """Write the open read of a channel, if its SUBSCRIBE command has been written."""
        subscription = self._subscriptions.get(name)
        if subscription is not None and subscription.sent == self._pubsub.subscribe:
            self.behind([name])

    def behind_carried(self) -> None:
        """Write the open reads of all channels that are granted here."""
        self.behind([name for _, name in self._subscriptions.carried])

    def _write(self) -> None:
        while self._queue and self._in_flight < IN_FLIGHT:
            read = self._reads.wanted.get(self._queue[0])
            if read is None or read.link is not self:
                self._queue.popleft()
                continue
            size = self._bytes_in_flight + read.expected_bytes
            if self._in_flight and size > IN_FLIGHT * ORDINARY_BYTES:
                return
            self._queue.popleft()
            if read.load is not None and read.load not in self._loaded:
                self._loaded.add(read.load)
                self._pending.ask(read.load).add_done_callback(ignore_result)
            self._in_flight += 1
            self._bytes_in_flight = size
            self._pending.read(read.command, read)

    def is_reply(self, reply: Any) -> bool:
        """Whether a reply, which is not a message, answers a read."""
        command = self._pending.first
        if command is None or command.read is None or is_push(reply):
            return False
        # fakeredis sends acknowledgements as plain lists. An epoch has another length than these.
        kinds = (self._pubsub.subscribed, self._pubsub.unsubscribed)
        return not (isinstance(reply, list) and reply and reply[0] in kinds)

    def take_diff(self, watch: str, payload: bytes, batch: list[Item]) -> None:
        """Append the diff in a message of a watch to a batch; other messages are skipped."""
        found = self._diffs.item(watch, payload)
        if found is not None:
            self._mixed = True
            batch.append((watch, found))

    def answered(self, reply: Any) -> Item | None:
        """Take the reply to the first pending command, which is a read.

        Returns:
            An item for the stream, or None if the read is dropped or will be repeated.

        Raises:
            WrongServer: the reply shows that the connection leads to a wrong server.
        """
        command = self._pending.first
        read = None if command is None else command.read
        self._pending.pop()
        if not isinstance(read, OpenRead):
            return None
        self._in_flight -= 1
        self._bytes_in_flight -= read.expected_bytes
        try:
            if self._reads.wanted.get(read.name) is not read or read.link is not self:
                return None
            if isinstance(reply, ReplyError):
                found = self._refused(read, reply)
            else:
                found = read.parse(reply, self._pending.connection)
                if isinstance(read, PresenceRead):
                    self._reads.note_size(read.name, read.size_bytes)
            if found is None:
                return None
            self._reads.answer(read)
            self._given.append(read)
            self._mixed = True
            if found.problem:
                self._reads.log_problem(read, found.problem)
            return read.channel, found
        finally:
            self._write()

    def _refused(self, read: OpenRead, error: ReplyError) -> Any:
        """The item of the stream for an error; None if the read is repeated."""
        text = str(error)
        if text.startswith("READONLY"):
            raise WrongServer("the server is a replica now")
        if text.startswith("MOVED"):
            if self._subscriptions.has(read.name):
                raise WrongServer(f"the server has lost a slot: {error}")
            read.link = None  # It follows behind the subscription at the other server.
            return None
        if is_missing(error) and read.loads < LOADS:
            read.loads += 1
            self._loaded.clear()
            self._queue.appendleft(read.name)
            return None
        if text.startswith(NOT_NOW):
            self._loop.call_later(RETRY_SECONDS, self._again, read)
            return None
        return read.unavailable(f"the server refused to read: {error}")

    def _again(self, read: OpenRead) -> None:
        if read.link is self and self._reads.wanted.get(read.name) is read:
            self._queue.append(read.name)
            if self._pending.connection is not None:
                self._write()

    def deliver_now(self, batch: list[Item]) -> Awaitable[None] | None:
        """Pass the items so far to the sink; see `EagerSink`."""
        if self._mixed:
            return Deferred(partial(self._deliver_mixed, batch))
        return self._deliver_messages(batch)

    async def _deliver_mixed(self, batch: list[Item]) -> None:
        self._mixed = False
        names = self._subscriptions.routed_names()  # As they are when the delivery begins.
        given, self._given = self._given, []
        for read in given:
            if read.channel in names:
                self._reads.delivered(read)
        # Another connection may have taken over the others. Otherwise they are unsubscribed.
        self._reads.undelivered([read for read in given if read.channel not in names])
        try:
            await deliver_mixed(
                self._reads.sink, batch, self._subscriptions.routed_names, self._deliver_messages
            )
        finally:
            for read in given:
                if read.channel in names:
                    read.finish()

    def renamed(self, history_id: bytes) -> None:
        """The server has a new history id and the same history as before."""
        rule_for, sink = self._reads.rule_for, self._reads.sink
        carried = self._subscriptions.carried
        channels = [channel for channel, _ in carried if rule_for(channel) is not None]
        if channels and isinstance(sink, HistorySink):
            sink.history_renamed(channels, history_id)

    def end(self) -> None:
        """The connection is lost; the open reads follow on another one."""
        for read in self._reads.wanted.values():
            if read.link is self:
                read.link = None
        given, self._given = self._given, []
        self._reads.undelivered(given)
        self._queue.clear()
        self._mixed = False
        self._in_flight = 0
        self._bytes_in_flight = 0
        self._loaded.clear()
