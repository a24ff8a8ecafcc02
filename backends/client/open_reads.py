"""The open reads of one broker on subscribing connections, with their deadlines.

A read is written on a subscribing connection, behind the subscription of its channel; see
`link_reads`. A read that was under way on a connection that is lost is written again behind the
next subscription of its channel. `history_reads` and `presence_reads` have the kinds of reads.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Protocol

from ...broker import Sink
from ...log import LogThrottle
from ...loops import OfOneLoop
from ...url import BrokerURL
from ..watches import channel_of
from .connection import Connection
from .parser import ConnectionLost
from .pending_commands import ReadCommand

__all__ = ["OpenRead", "OpenReads", "ReadReply", "WrongServer"]

logger = logging.getLogger("django_sockets")

READ_SECONDS = 5.0
"""Time for the reply to a read, from the request."""
ORDINARY_BYTES = 256 * 1024
"""Size that the reply of a read is expected to have at most, unless more is known."""


class WrongServer(ConnectionLost):
    """The next connection may lead to the same wrong server, so it waits for the back-off."""


class ReadReply(Protocol):
    """An item of the stream that answers a read."""

    @property
    def problem(self) -> str:
        """Why there is no answer of the server; empty if there is one."""


class OpenRead(ReadCommand, ABC):
    """One open read.

    Args:
        channel: the name of the subscription or watch.
        name: its server-side name.
        command: the command that reads.

    Attributes:
        deadline: the time of the event loop at which it is given up.
        expected_bytes: size of the reply, as far as it can be known.
        link: the `LinkReads` of the connection on which it is under way, or None.
        loads: how often the script was missing.
        waiting: set once the sink has got the reply.
        subject: names what is read, for log lines.
        load: the command that loads the script of `command`; None if it calls no script.
        joins: whether it answers those who wait for an earlier read of the same name as well.
    """

    __slots__ = (
        "channel", "command", "deadline", "expected_bytes", "link", "loads", "name", "waiting",
    )  # fmt: skip
    subject = ""
    load: tuple[bytes, ...] | None = None
    joins = False

    def __init__(self, channel: str, name: bytes, command: tuple[bytes, ...]) -> None:
        self.channel = channel
        self.name = name
        self.command = command
        self.deadline = 0.0
        self.expected_bytes = ORDINARY_BYTES
        self.link: object = None
        self.loads = 0
        self.waiting: list[asyncio.Future[None]] = []

    @abstractmethod
    def parse(self, reply: Any, connection: Connection | None) -> Any:
        """The item of the stream for a reply that is no error.

        Raises:
            WrongServer: the reply shows that the connection leads to a wrong server.
        """

    @abstractmethod
    def unavailable(self, problem: str) -> Any:
        """The item of the stream if the server gives no answer."""

    @abstractmethod
    async def give(self, sink: Sink, item: Any) -> None:
        """Pass an item to the sink outside of the stream."""

    def finish(self) -> None:
        """Wake the callers that wait for it."""
        for future in self.waiting:
            if not future.done():
                future.set_result(None)


class OpenReads(OfOneLoop):
    """The open reads of one broker.

    Attributes:
        url: the URL of the broker.
        rule_for: returns the history rule of a channel, or None.
        sink: receives the replies.
        wanted: server-side name -> its open read.
        answered: server-side name -> a read whose reply is on its way to the sink.
    """

    def __init__(self, url: BrokerURL, sink: Sink) -> None:
        self.url = url
        self.rule_for = url.history.rule_for
        self.sink = sink
        self.wanted: dict[bytes, OpenRead] = {}
        self.answered: dict[bytes, OpenRead] = {}
        self._large: dict[bytes, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)

    def open(self, read: OpenRead) -> None:
        """Open a read; it takes the place of an open one of the same name."""
        for table in (self.wanted, self.answered):
            earlier = table.pop(read.name, None)
            if earlier is not None and read.joins:
                read.waiting += [future for future in earlier.waiting if not future.done()]
            elif earlier is not None:
                earlier.finish()
        read.deadline = self._loop.time() + READ_SECONDS
        read.expected_bytes = self._large.get(read.name, ORDINARY_BYTES)
        self.wanted[read.name] = read
        if self._timer is None:
            self._timer = self._loop.call_at(read.deadline, self._expire)

    def withdraw(self, reads: Iterable[OpenRead]) -> None:
        """Drop reads, as far as they are still open."""
        for read in reads:
            for table in (self.wanted, self.answered):
                if table.get(read.name) is read:
                    del table[read.name]
            read.finish()

    def unsubscribed(self, names: Iterable[bytes]) -> None:
        """Drop the reads of these names, because nobody subscribes to them any more."""
        for name in names:
            self._large.pop(name, None)
            for table in (self.wanted, self.answered):
                if name in table:
                    table.pop(name).finish()

    def note_size(self, name: bytes, size_bytes: int) -> None:
        """Remember the size of a reply for the next read of the same name."""
        if size_bytes > ORDINARY_BYTES:
            self._large[name] = size_bytes
        else:
            self._large.pop(name, None)

    def answer(self, read: OpenRead) -> None:
        """The server has answered an open read; `delivered` or `undelivered` follows."""
        del self.wanted[read.name]
        self.answered[read.name] = read

    def delivered(self, read: OpenRead) -> None:
        """The sink takes the reply of a read."""
        if self.answered.get(read.name) is read:
            del self.answered[read.name]

    def undelivered(self, reads: Iterable[OpenRead]) -> None:
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

    def give_up(self, read: OpenRead, problem: str) -> None:
        """End a read outside of the stream, with a reply that says so."""
        if self.wanted.get(read.name) is not read:
            return
        del self.wanted[read.name]
        task = self._loop.create_task(self._give(read, problem), name="django_sockets read")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _give(self, read: OpenRead, problem: str) -> None:
        self.log_problem(read, problem)
        try:
            await read.give(self.sink, read.unavailable(problem))
        except Exception as exc:
            text = "%s: delivering a reply failed"
            self._throttle.log(
                logging.ERROR, "deliver", text, self.url, exc_info=exc, extra={"broker": self.url}
            )
        finally:
            read.finish()

    def log_problem(self, read: OpenRead, problem: str) -> None:
        """Log that a channel could not be read."""
        text = "%s: cannot read %s of %r: %s"
        channel = channel_of(read.channel)
        self._throttle.log(
            logging.WARNING,
            read.subject,
            text,
            self.url,
            read.subject,
            channel,
            problem,
            extra={"broker": self.url, "channel": channel, "reason": problem},
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
