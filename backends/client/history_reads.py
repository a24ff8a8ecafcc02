"""Reads of the history on the subscribing connections, behind the subscriptions.

`HistoryReads` holds the open reads of a broker. `LinkReads` writes them on one connection, at most
`IN_FLIGHT` at a time, and turns the replies into items of the stream. A read that a connection took
along when it was lost is written again behind the next subscription of its channel.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

from ...broker import HistoryItem, HistorySink, Sink
from ...history import HistoryReply, HistoryRule, Start
from ...log import LogThrottle
from ...loops import OfOneLoop
from ...url import BrokerURL
from .deadlines import ignore_result
from .history_scripts import READ, history_reply, read_command
from .identity import NO_FORMER_HISTORY
from .parser import ConnectionLost, ReplyError
from .pending_commands import PendingCommands, ReadCommand
from .scripts import is_missing

__all__ = ["HISTORY_CHANGED", "HistoryRead", "HistoryReads", "LinkReads"]

logger = logging.getLogger("django_sockets")

READ_SECONDS = 5.0
"""Time for the reply to a read, from the request."""
IN_FLIGHT = 16
"""Maximum number of reads under way on one connection. Each reply may have 256 KiB, and a server
closes connections with too much unread output."""
RETRY_SECONDS = 0.1
"""Pause before a read that the server could not serve is repeated."""
LOADS = 3
"""How often a script is loaded for one read."""
NOT_NOW = ("ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "BUSY")
HISTORY_CHANGED = "the server has another history now"


class HistoryRead(ReadCommand):
    """One open read.

    Attributes:
        deadline: the time of the event loop at which it is given up.
        link: the connection on which it is under way, or None.
        loads: how often the script was missing.
        given: set once the sink has got the reply; None if nobody waits.
    """

    __slots__ = ("channel", "command", "deadline", "given", "link", "loads", "name")

    def __init__(
        self, channel: str, name: bytes, command: tuple[bytes, ...], deadline: float
    ) -> None:
        self.channel = channel
        self.name = name
        self.command = command
        self.deadline = deadline
        self.link: LinkReads | None = None
        self.loads = 0
        self.given: asyncio.Future[None] | None = None

    def finish(self) -> None:
        """Wake the caller that waits for it."""
        if self.given is not None and not self.given.done():
            self.given.set_result(None)


class HistoryReads(OfOneLoop):
    """The open reads of one broker.

    Attributes:
        wanted: server-side name -> its open read.
    """

    def __init__(self, url: BrokerURL, sink: Sink) -> None:
        self._url = url
        self.sink = cast("HistorySink", sink)
        self.wanted: dict[bytes, HistoryRead] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)

    def request(self, channel: str, name: bytes, start: Start, rule: HistoryRule) -> HistoryRead:
        """Open a read; it takes the place of an open one of the same channel."""
        replaced = self.wanted.pop(name, None)
        if replaced is not None:
            replaced.finish()
        command = read_command(name, start, rule, rule.messages)
        read = HistoryRead(channel, name, command, self._loop.time() + READ_SECONDS)
        self.wanted[name] = read
        if self._timer is None:
            self._timer = self._loop.call_at(read.deadline, self._expire)
        return read

    def withdraw(self, reads: Iterable[HistoryRead]) -> None:
        """Drop reads, as far as they are still open."""
        for read in reads:
            if self.wanted.get(read.name) is read:
                del self.wanted[read.name]
            read.finish()

    def unsubscribed(self, names: Iterable[bytes]) -> None:
        """Drop the reads of these names, because nobody subscribes to them any more."""
        self.withdraw([self.wanted[name] for name in names if name in self.wanted])

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for read in list(self.wanted.values()):  # In the order of their deadlines.
            if read.deadline > now:
                self._timer = self._loop.call_at(read.deadline, self._expire)
                return
            self.give_up(read, f"no reply within {READ_SECONDS:g} s")

    def give_up(self, read: HistoryRead, problem: str) -> None:
        """End a read outside of the stream, with a reply that says so."""
        if self.wanted.get(read.name) is not read:
            return
        del self.wanted[read.name]
        task = self._loop.create_task(
            self._give(read, HistoryReply.unavailable(problem)), name="django_sockets history"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _give(self, read: HistoryRead, reply: HistoryReply) -> None:
        self.log_problem(read.channel, reply.problem)
        try:
            await self.sink.deliver_with_history([(read.channel, reply)])
        except Exception as exc:
            text = "%s: delivering a reply failed"
            self._throttle.log(logging.ERROR, "deliver", text, self._url, exc_info=exc)
        finally:
            read.finish()

    def log_problem(self, channel: str, problem: str) -> None:
        """Log that a channel could not be read."""
        text = "%s: cannot read the history of %r: %s"
        self._throttle.log(logging.WARNING, "read", text, self._url, channel, problem)

    async def aclose(self) -> None:
        """Drop all reads."""
        if self._timer is not None:
            self._timer.cancel()
        self.withdraw(list(self.wanted.values()))
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))


class LinkReads(OfOneLoop):
    """The reads on one connection.

    Args:
        pending: the commands of the connection.
        is_active: whether the subscription of a server-side name is granted on the connection.
    """

    def __init__(
        self, reads: HistoryReads, pending: PendingCommands, is_active: Callable[[bytes], bool]
    ) -> None:
        self._reads = reads
        self._pending = pending
        self._is_active = is_active
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

    def answered(self, reply: Any) -> HistoryItem | None:
        """Take the reply to the first pending command, which is a read.

        Returns:
            An item for the stream, or None if the read is dropped or will be repeated.

        Raises:
            ConnectionLost: the reply shows that this is a wrong server.
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
            del self._reads.wanted[read.name]
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
                raise ConnectionLost(HISTORY_CHANGED)
        return found

    def _refused(self, read: HistoryRead, error: ReplyError) -> HistoryReply | None:
        text = str(error)
        if text.startswith("READONLY"):
            raise ConnectionLost("the server is a replica now")
        if text.startswith("MOVED"):
            if self._is_active(read.name):
                raise ConnectionLost(f"the server has lost a slot: {error}")
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

    @property
    def has_replies(self) -> bool:
        """Whether the items that the sink has not got yet include a reply."""
        return bool(self._given)

    def delivered(self) -> None:
        """The sink has got the items so far."""
        given, self._given = self._given, []
        for read in given:
            read.finish()

    def end(self) -> None:
        """The connection is lost; the open reads follow on another one."""
        for read in self._reads.wanted.values():
            if read.link is self:
                read.link = None
        self.delivered()
        self._queue.clear()
        self._in_flight = 0
        self._loaded = False
