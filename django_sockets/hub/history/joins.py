"""Subscriptions that begin in the past of a channel: `since` and `replay`.

A `Join` is one subscriber that waits for its messages from the history. Several joins of a channel
share one read: `JoinRead` begins at the lowest of their positions and gives each join its part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ...delivery.channel import Subscriber
from ...delivery.send_queue import SendQueue
from ...history import HistoryReply, HistoryStatus, Position, Recovery, Start
from .reader import index_behind, is_chain, same_place

__all__ = ["Join", "JoinRead", "lowest"]

REPLAY_BYTES = 16 * 1024 * 1024
"""The most that one read collects for joins. With more, they get a gap."""


class Join:
    """A subscriber that gets the live messages of a channel once its missed messages were read.

    Attributes:
        start: see `SupportsHistory.subscribe_with_history`.
        answer: the result of the subscription.
    """

    __slots__ = ("answer", "send_queue", "start", "subscriber")

    def __init__(
        self,
        subscriber: Subscriber,
        send_queue: SendQueue | None,
        start: Start,
        answer: asyncio.Future[Recovery],
    ) -> None:
        self.subscriber = subscriber
        self.send_queue = send_queue
        self.start = start
        self.answer = answer

    def settle(self, recovery: Recovery) -> None:
        """Set the result."""
        if not self.answer.done():
            self.answer.set_result(recovery)

    def fail(self, error: Exception) -> None:
        """Let the subscription fail, unless it has a result."""
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # The caller may have been cancelled.

    def fits(self, start: Start) -> bool:
        """Whether a read for `start` can serve this join, too."""
        mine = self.start
        if mine is None:
            return True
        if isinstance(mine, Position) and isinstance(start, Position):
            return (mine.epoch, mine.history_id) == (start.epoch, start.history_id)
        return mine == start


class JoinRead:
    """The messages for some joins, collected from the replies to one read and its continuations.

    Args:
        start: where the read begins.
        everything: the read has everything that is kept. Otherwise, a join whose messages are not
            in it may need such a read.

    Attributes:
        joins: those that wait for this read.
        messages: the collected messages.
        usable: nothing is missing among them.
        complete: the messages of each reply were collected.
    """

    def __init__(self, joins: Iterable[Join], start: Start, *, everything: bool = False) -> None:
        self.joins = list(joins)
        self.start = start
        self.messages: tuple[bytes, ...] = ()
        self._everything = everything
        self._left = REPLAY_BYTES
        self.usable = True
        self.complete = bool(self.joins)

    def add(self, reply: HistoryReply, start: Start) -> None:
        """Collect the messages of a reply.

        Args:
            start: where the read of this reply began.
        """
        self._left -= sum(map(len, reply.messages))
        broken = reply.status is HistoryStatus.BROKEN and isinstance(start, Position)
        failed = broken or reply.status is HistoryStatus.UNAVAILABLE or self._left < 0
        if failed or not is_chain((*self.messages[-1:], *reply.messages)):
            self.usable = False
        if self.usable:
            self.messages += reply.messages
        else:
            self.messages = ()

    def part_for(self, start: Start, reply: HistoryReply) -> tuple[bool, int]:
        """The part of a join.

        Args:
            start: of the join.
            reply: the last one.

        Returns:
            Whether the part is whole, and the index of its first message.
        """
        end, total = reply.position, len(self.messages)
        if start is None:
            return True, total
        if not self.usable or end is None:
            return False, total
        if isinstance(start, int):
            return reply.status is HistoryStatus.WHOLE or total >= start, max(0, total - start)
        if start.history_id != end.history_id:
            return False, total
        index = index_behind(start, self.messages, end)
        return index is not None, total if index is None else index

    def retries(self, reply: HistoryReply) -> list[Join]:
        """The joins for which a read of everything makes sense: their messages may be kept."""
        if (
            self._everything
            or not isinstance(self.start, Position)
            or reply.status is HistoryStatus.UNAVAILABLE
            or reply.position is None
            or self._left < 0
        ):
            return []
        return [
            join
            for join in self.joins
            if isinstance(join.start, Position)
            and join.start.epoch == reply.position.epoch
            and join.start.history_id == reply.position.history_id
            and not same_place(join.start, self.start)
            and not self.part_for(join.start, reply)[0]
        ]


def lowest(joins: Iterable[Join], start: Start) -> Start:
    """The lowest position of joins and of `start`, if it is a position."""
    places = [join.start for join in joins if isinstance(join.start, Position)]
    if isinstance(start, Position):
        places.append(start)
    return min(places, key=lambda place: place.offset) if places else start
