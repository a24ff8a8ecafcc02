"""The open reads of the history of one broker, with their deadlines.

A read is written on a subscribing connection, behind the subscription of its channel; see
`link_reads`. A read that was under way on a connection that is lost is written again behind the
next subscription of its channel.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import cast

from ...broker import HistorySink, Sink
from ...history import HistoryReply, HistoryRule, Start
from ...log import LogThrottle
from ...loops import OfOneLoop
from ...url import BrokerURL
from .history_scripts import read_command
from .pending_commands import ReadCommand

__all__ = ["HistoryRead", "HistoryReads"]

logger = logging.getLogger("django_sockets")

READ_SECONDS = 5.0
"""Time for the reply to a read, from the request."""


class HistoryRead(ReadCommand):
    """One open read.

    Attributes:
        deadline: the time of the event loop at which it is given up.
        link: the `LinkReads` of the connection on which it is under way, or None.
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
        self.link: object = None
        self.loads = 0
        self.given: asyncio.Future[None] | None = None

    def finish(self) -> None:
        """Wake the caller that waits for it."""
        if self.given is not None and not self.given.done():
            self.given.set_result(None)


class HistoryReads(OfOneLoop):
    """The open reads of one broker.

    Attributes:
        rule_for: returns the rule of a channel, or None.
        sink: receives the replies.
        wanted: server-side name -> its open read.
        answered: server-side name -> a read whose reply is on its way to the sink.
    """

    def __init__(self, url: BrokerURL, sink: Sink) -> None:
        self._url = url
        self.rule_for = url.history.rule_for
        self.sink = cast("HistorySink", sink)
        self.wanted: dict[bytes, HistoryRead] = {}
        self.answered: dict[bytes, HistoryRead] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)

    def request(self, channel: str, name: bytes, start: Start, rule: HistoryRule) -> HistoryRead:
        """Open a read; it takes the place of an open one of the same channel."""
        self.unsubscribed([name])
        command = read_command(name, start, rule, rule.messages)
        read = HistoryRead(channel, name, command, self._loop.time() + READ_SECONDS)
        self.wanted[name] = read
        if self._timer is None:
            self._timer = self._loop.call_at(read.deadline, self._expire)
        return read

    def withdraw(self, reads: Iterable[HistoryRead]) -> None:
        """Drop reads, as far as they are still open."""
        for read in reads:
            for table in (self.wanted, self.answered):
                if table.get(read.name) is read:
                    del table[read.name]
            read.finish()

    def unsubscribed(self, names: Iterable[bytes]) -> None:
        """Drop the reads of these names, because nobody subscribes to them any more."""
        for name in names:
            for table in (self.wanted, self.answered):
                if name in table:
                    table.pop(name).finish()

    def answer(self, read: HistoryRead) -> None:
        """The server has answered an open read; `delivered` or `undelivered` follows."""
        del self.wanted[read.name]
        self.answered[read.name] = read

    def delivered(self, read: HistoryRead) -> None:
        """The sink takes the reply of a read."""
        if self.answered.get(read.name) is read:
            del self.answered[read.name]

    def undelivered(self, reads: Iterable[HistoryRead]) -> None:
        """These replies were lost on their way to the sink: the reads are open again."""
        for read in reads:
            if self.answered.get(read.name) is read:
                del self.answered[read.name]
                read.link = None
                self.wanted[read.name] = read
            else:
                read.finish()
        in_order = sorted(self.wanted.values(), key=lambda read: read.deadline)
        self.wanted = {read.name: read for read in in_order}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if in_order:
            self._timer = self._loop.call_at(in_order[0].deadline, self._expire)

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
            self._throttle.log(
                logging.ERROR, "deliver", text, self._url, exc_info=exc, extra={"broker": self._url}
            )
        finally:
            read.finish()

    def log_problem(self, channel: str, problem: str) -> None:
        """Log that a channel could not be read."""
        text = "%s: cannot read the history of %r: %s"
        self._throttle.log(
            logging.WARNING,
            "read",
            text,
            self._url,
            channel,
            problem,
            extra={"broker": self._url, "channel": channel, "reason": problem},
        )

    async def aclose(self) -> None:
        """Drop all reads."""
        if self._timer is not None:
            self._timer.cancel()
        self.withdraw([*self.wanted.values(), *self.answered.values()])
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
