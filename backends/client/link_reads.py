"""The reads of the history on one subscribing connection, behind the subscriptions.

`LinkReads` writes the open reads of the broker (`history_reads`), at most `IN_FLIGHT` at a time,
turns the replies into items of the stream, and passes batches with replies to the sink.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias, cast

from ...broker import HistoryItem, HistorySink, deliver_now
from ...history import HistoryReply
from ...loops import OfOneLoop
from .commands import PubSubCommands
from .deadlines import ignore_result
from .history_reads import HistoryRead, HistoryReads
from .history_scripts import READ, history_reply
from .identity import NO_FORMER_HISTORY
from .parser import ConnectionLost, ReplyError, is_push
from .pending_commands import PendingCommands
from .scripts import is_missing
from .subscription_set import SubscriptionSet

__all__ = ["HISTORY_CHANGED", "DeliverNow", "LinkReads", "WrongServer"]

DeliverNow: TypeAlias = Callable[[list[HistoryItem]], Awaitable[None] | None]
IN_FLIGHT = 16
"""Maximum number of reads under way on one connection. Each reply may have 256 KiB, and a server
closes connections with too much unread output."""
RETRY_SECONDS = 0.1
"""Pause before a read that the server could not serve is repeated."""
LOADS = 3
"""How often a script is loaded for one read."""
NOT_NOW = ("ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "BUSY")
HISTORY_CHANGED = "the server has another history now"


class WrongServer(ConnectionLost):
    """The next connection may lead to the same wrong server, so it waits for the back-off."""


class LinkReads(OfOneLoop):
    """The reads on one connection.

    Args:
        pending: the commands of the connection.
        subscriptions: the subscriptions on the connection.
    """

    def __init__(
        self,
        reads: HistoryReads,
        pending: PendingCommands,
        subscriptions: SubscriptionSet,
        pubsub: PubSubCommands,
    ) -> None:
        self._reads = reads
        self._pending = pending
        self._subscriptions = subscriptions
        self._pubsub = pubsub
        # A batch without replies has only messages.
        self._deliver_messages = cast(
            "DeliverNow", deliver_now(reads.sink, subscriptions.routed_channels)
        )
        self._queue: deque[bytes] = deque()
        self._in_flight = 0
        self._loaded = False
        self._given: list[HistoryRead] = []

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
            read = self._reads.wanted.get(self._queue.popleft())
            if read is None or read.link is not self:
                continue
            if not self._loaded:
                self._loaded = True
                self._pending.ask(READ.load).add_done_callback(ignore_result)
            self._in_flight += 1
            self._pending.read(read.command, read)

    def is_reply(self, reply: Any) -> bool:
        """Whether a reply, which is not a message, answers a read of the history."""
        command = self._pending.first
        if command is None or command.read is None or is_push(reply):
            return False
        # fakeredis sends acknowledgements as plain lists. An epoch has another length than these.
        kinds = (self._pubsub.subscribed, self._pubsub.unsubscribed)
        return not (isinstance(reply, list) and reply and reply[0] in kinds)

    def answered(self, reply: Any) -> HistoryItem | None:
        """Take the reply to the first pending command, which is a read.

        Returns:
            An item for the stream, or None if the read is dropped or will be repeated.

        Raises:
            WrongServer: the reply shows that the connection leads to a wrong server.
        """
        command = self._pending.first
        read = None if command is None else command.read
        self._pending.pop()
        if not isinstance(read, HistoryRead):
            return None
        self._in_flight -= 1
        try:
            if self._reads.wanted.get(read.name) is not read or read.link is not self:
                return None
            found = (
                self._refused(read, reply) if isinstance(reply, ReplyError) else self._read(reply)
            )
            if found is None:
                return None
            self._reads.answer(read)
            self._given.append(read)
            if found.problem:
                self._reads.log_problem(read.channel, found.problem)
            return read.channel, found
        finally:
            self._write()

    def _read(self, reply: Any) -> HistoryReply:
        found = history_reply(reply)
        if found is None:
            return HistoryReply.unavailable("the reply of the server is malformed")
        connection = self._pending.connection
        new = b"" if found.position is None else found.position.history_id
        if connection is not None and new:
            known = connection.identity.history_id
            if not known:
                connection.identity = connection.identity._replace(history_id=new)
            elif known != new and found.previous_history_id != NO_FORMER_HISTORY:
                raise WrongServer(HISTORY_CHANGED)
        return found

    def _refused(self, read: HistoryRead, error: ReplyError) -> HistoryReply | None:
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
            self._loaded = False
            self._queue.appendleft(read.name)
            return None
        if text.startswith(NOT_NOW):
            self._loop.call_later(RETRY_SECONDS, self._again, read)
            return None
        return HistoryReply.unavailable(f"the server refused to read: {error}")

    def _again(self, read: HistoryRead) -> None:
        if read.link is self and self._reads.wanted.get(read.name) is read:
            self._queue.append(read.name)
            if self._pending.connection is not None:
                self._write()

    def deliver_now(self, batch: list[HistoryItem]) -> Awaitable[None] | None:
        """Pass the items so far to the sink; see `EagerSink`."""
        return self._deliver_replies(batch) if self._given else self._deliver_messages(batch)

    async def _deliver_replies(self, batch: list[HistoryItem]) -> None:
        channels = self._subscriptions.routed_channels()  # As they are when the delivery begins.
        batch = [item for item in batch if item[0] in channels]
        given, self._given = self._given, []
        for read in given:
            if read.channel in channels:
                self._reads.delivered(read)
        # Another connection may have taken over the others. Otherwise they are unsubscribed.
        self._reads.undelivered([read for read in given if read.channel not in channels])
        try:
            if batch:
                await self._reads.sink.deliver_with_history(batch)
        finally:
            for read in given:
                if read.channel in channels:
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
        self._in_flight = 0
        self._loaded = False
