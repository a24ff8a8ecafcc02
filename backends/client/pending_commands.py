"""The commands on a subscribing connection that the server has not answered yet, in order.

A SUBSCRIBE command is answered by one push for each name, or by one error. The same holds for
UNSUBSCRIBE, but a server may also end a subscription by itself, with the same push. UNSUBSCRIBE
commands are therefore followed by a PING, whose reply shows that all of them have been answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...loops import OfOneLoop
from .commands import PubSubCommands, slot_of
from .connection import Connection
from .deadlines import ignore_result
from .parser import ConnectionLost, ReplyError, pack

__all__ = ["PendingCommand", "PendingCommands", "ReadCommand"]

NAMES_PER_COMMAND = 1000
REDIRECTIONS = ("MOVED", "ASK", "TRYAGAIN", "CROSSSLOT")


class ReadCommand:
    """Marks a command whose reply is a part of the stream."""

    __slots__ = ()


class PendingCommand:
    """One SUBSCRIBE command, or UNSUBSCRIBE commands and the command with a reply behind them.

    Attributes:
        names: the names of all these commands.
        reply: the future of the last command's own reply; None for SUBSCRIBE.
        ends: for each UNSUBSCRIBE command, the index in `names` behind its last name.
        answered: how many of the names have been answered.
        read: the read that the command makes, or None.
    """

    __slots__ = ("answered", "ends", "names", "read", "reply")

    def __init__(
        self,
        names: Sequence[bytes],
        reply: asyncio.Future[Any] | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        self.names = names
        self.reply = reply
        self.ends = ends
        self.answered = 0
        self.read: ReadCommand | None = None

    def take_end(self, name: bytes) -> None:
        """Note that the server has ended a name, perhaps without having been asked to."""
        if self.answered < len(self.names) and self.names[self.answered] == name:
            self.answered += 1

    def take_error(self, error: ReplyError) -> bool:
        """Whether an error is the reply, and not the answer to an UNSUBSCRIBE command."""
        for end in self.ends:
            if end > self.answered:
                self.answered = end
                return False
        # The server may have ended a name by itself and then refused to end it again. PING names
        # no channel, so that a redirection can never be its reply.
        return not (self.ends and str(error).startswith(REDIRECTIONS))


class PendingCommands(OfOneLoop):
    """Writes commands to the present connection and keeps those that are not answered yet.

    Attributes:
        connection: the present connection, or None.
    """

    def __init__(self, pubsub: PubSubCommands) -> None:
        self._pubsub = pubsub
        self._commands: deque[PendingCommand] = deque()
        self.connection: Connection | None = None

    @property
    def first(self) -> PendingCommand | None:
        """The command that the next answer belongs to."""
        return self._commands[0] if self._commands else None

    def pop(self) -> None:
        """Remove the first command, because it has been answered."""
        self._commands.popleft()

    def acknowledge(self, name: bytes) -> bool:
        """Take one answer to a SUBSCRIBE command; False if no command expects it now."""
        command = self.first
        if command is None or command.reply is not None or command.names[command.answered] != name:
            return False
        command.answered += 1
        if command.answered == len(command.names):
            self.pop()
        return True

    def end(self, reason: str) -> None:
        """The connection is lost: fail every reply."""
        self.connection = None
        for command in self._commands:
            if command.reply is not None and not command.reply.done():
                command.reply.set_exception(ConnectionLost(reason))
                ignore_result(command.reply)  # The caller may have been cancelled.
        self._commands.clear()

    def subscribe(self, names: Iterable[bytes]) -> None:
        """Write SUBSCRIBE commands for 0..n names."""
        data = []
        for group in self._grouped(names):
            self._commands.append(PendingCommand(group))
            data.append(pack((self._pubsub.subscribe, *group)))
        self._write(data)

    def unsubscribe(self, names: Iterable[bytes]) -> None:
        """Write UNSUBSCRIBE commands for 1..n names, and a PING."""
        self._ask((b"PING",), [*self._grouped(names)])

    def ask(self, command: tuple[bytes, ...]) -> asyncio.Future[Any]:
        """Write a command; returns the future of its reply, which may be an error.

        With RESP2 a server answers no command but PING here.

        Raises:
            ConnectionLost: there is no connection. If it is lost later, the future raises it.
        """
        if self.connection is None:
            raise ConnectionLost("no connection")
        return self._ask(command)

    def read(self, command: tuple[bytes, ...], read: ReadCommand) -> None:
        """Write a command that reads, if there is a connection."""
        if self.connection is not None:
            self._ask(command)
            self._commands[-1].read = read

    def _ask(
        self, command: tuple[bytes, ...], ended: Sequence[Sequence[bytes]] = ()
    ) -> asyncio.Future[Any]:
        """Write an UNSUBSCRIBE command for each group of names, and `command` behind them."""
        reply: asyncio.Future[Any] = self._loop.create_future()
        names = [name for group in ended for name in group]
        ends = itertools.accumulate(map(len, ended))
        self._commands.append(PendingCommand(names, reply, [*ends]))
        unsubscribe = self._pubsub.unsubscribe
        self._write([*(pack((unsubscribe, *group)) for group in ended), pack(command)])
        return reply

    def _grouped(self, names: Iterable[bytes]) -> Iterator[list[bytes]]:
        """Split names into groups that one command may carry."""
        groups: dict[int, list[bytes]] = {}
        if self._pubsub.by_slot:
            for name in names:
                groups.setdefault(slot_of(name), []).append(name)
        else:
            groups[0] = list(names)
        for group in groups.values():
            for start in range(0, len(group), NAMES_PER_COMMAND):
                yield group[start : start + NAMES_PER_COMMAND]

    def _write(self, data: Sequence[bytes]) -> None:
        if self.connection is not None and data:
            # A failed write needs no handling, because the read loop notices the lost connection.
            with contextlib.suppress(ConnectionLost):
                self.connection.write(b"".join(data))
