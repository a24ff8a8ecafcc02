"""A read of the history of a channel behind its subscription."""

from __future__ import annotations

from typing import cast

from ...broker import HistorySink, Sink
from ...history import HistoryReply, HistoryRule, Start
from .connection import Connection
from .history_scripts import READ, history_reply, read_command
from .identity import NO_FORMER_HISTORY
from .open_reads import OpenRead, WrongServer

__all__ = ["HISTORY_CHANGED", "HistoryRead"]

HISTORY_CHANGED = "the server has another history now"


class HistoryRead(OpenRead):
    """One open read of the history of a channel."""

    __slots__ = ()
    subject = "the history"
    load = READ.load

    def __init__(self, channel: str, name: bytes, start: Start, rule: HistoryRule) -> None:
        super().__init__(channel, name, read_command(name, start, rule, rule.messages))

    def parse(self, reply: object, connection: Connection | None) -> HistoryReply:
        """See `OpenRead`."""
        try:
            found = history_reply(reply)
        except ValueError as exc:
            return self.unavailable(str(exc))
        new = b"" if found.position is None else found.position.history_id
        if connection is not None and new:
            known = connection.identity.history_id
            if not known:
                connection.identity = connection.identity._replace(history_id=new)
            elif known != new and found.previous_history_id != NO_FORMER_HISTORY:
                raise WrongServer(HISTORY_CHANGED)
        return found

    def unavailable(self, problem: str) -> HistoryReply:
        """See `OpenRead`."""
        return HistoryReply.unavailable(problem)

    async def give(self, sink: Sink, item: HistoryReply) -> None:
        """See `OpenRead`."""
        await cast("HistorySink", sink).deliver_with_history([(self.channel, item)])
