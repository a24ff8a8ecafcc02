"""Heals one channel from its history: which live messages to take, what to read, when to signal.

No module uses this one yet: the hub signals a gap after each loss. It is written and tested for the
planned healing.

`HistoryReader` decides and does nothing else. Its user, the hub, asks it about each live message of
a channel with a history rule, about each reply, and about each loss, and then acts. The hub passes
every message that the reader lets through to the sequence tracker of the channel, which drops what
is repeated. Healing never resets the tracker.

Only messages of the same history follow on each other. Each kept message names the one before it by
epoch, offset and tag. Two servers that took different messages after a failover may have the same
offsets and even the same last message. The history id of a server tells them apart.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

from ..delivery.envelope import HistoryLink, unpack_kept
from ..delivery.events import HISTORY
from ..history import NO_TAG, HistoryReply, HistoryStatus, Position, Start, tag_of

__all__ = ["HISTORY", "Healed", "HistoryReader", "Live"]


class Live(enum.Enum):
    """The decision about a live message."""

    TAKE = enum.auto()
    """Pass it to the sequence tracker."""
    DROP = enum.auto()
    """Drop it: it is repeated, or the reply to the open read has it."""
    READ = enum.auto()
    """Drop it, and read the channel at `HistoryReader.start`: messages before it are missing."""


@dataclasses.dataclass(frozen=True)
class Healed:
    """The steps after a reply, in this order.

    Attributes:
        gap: the reason of a gap to signal, or None.
        messages: kept messages to pass to the sequence tracker.
        read: read the channel again at `HistoryReader.start`.
    """

    gap: str | None = None
    messages: tuple[bytes, ...] = ()
    read: bool = False


class HistoryReader:
    """The place of one channel in its history, and the open read.

    Args:
        start: where the read behind the first subscription begins. It is open from now on.

    Attributes:
        position: the place behind the last message; None if it is unknown.
        reading: a read is open. Until its reply, live messages with a place are dropped.
        start: where the open read begins.
    """

    __slots__ = ("_gap", "_handed_over", "position", "reading", "start")

    def __init__(self, start: Start = None) -> None:
        self.position = start if isinstance(start, Position) else None
        self.reading = True
        self.start = start
        self._gap: str | None = None
        self._handed_over = False

    def live(self, link: HistoryLink | None, tag: bytes, is_old: Callable[[], bool]) -> Live:
        """Decide about a live message.

        Args:
            link: its place; None for a message that was not kept.
            tag: its own tag.
            is_old: whether the sequence tracker has seen this or a later message of its publisher.
        """
        if link is None:
            return Live.TAKE
        if self.reading:
            return Live.DROP
        epoch, offset, before = link
        at = self.position
        if at is None:
            # A gap was signalled before. Without a reply, the history id is unknown.
            self.position = Position(epoch, offset, tag)
            return Live.TAKE
        if before == at.tag and epoch == at.epoch and offset == at.offset + 1:
            self.position = Position(epoch, offset, tag, at.history_id)
            return Live.TAKE
        if is_old():
            return Live.DROP
        if epoch != at.epoch and offset == 1 and before == NO_TAG:
            self.position = Position(epoch, offset, tag, at.history_id)
            return Live.TAKE
        self._open(at)
        return Live.READ

    def lost(self, reason: str, *, handed_over: bool) -> bool:
        """The connection that delivered the channel was lost.

        Args:
            reason: of the gap, if the loss cannot be healed.
            handed_over: a live server has given the channel to another one, as when a slot of a
                cluster moves.

        Returns:
            Whether to read the channel at `start`. False if a read is open, which goes on.
        """
        self._handed_over = handed_over
        if self.reading:
            if not isinstance(self.start, Position):
                # The reply does not begin where the lost connection ended.
                self._gap = self._gap or reason
            return False
        if self.position is None:
            self._gap = reason
        self._open(self.position, handed_over)
        return True

    def renamed(self, history_id: bytes) -> None:
        """The server has another history id for the same history."""
        if self.position is not None:
            self.position = dataclasses.replace(self.position, history_id=history_id)
        if isinstance(self.start, Position):
            self.start = dataclasses.replace(self.start, history_id=history_id)

    def reply(self, reply: HistoryReply) -> Healed:
        """Take the reply to the open read."""
        if not self.reading:
            return Healed()
        start, gap = self.start, self._gap
        if reply.status is HistoryStatus.UNAVAILABLE:
            self._close(None)
            return Healed(gap or HISTORY)
        whole = reply.status is not HistoryStatus.BROKEN and _is_chain(reply.messages)
        if start is None:
            whole = True  # Nothing is missing; `gap` tells what was before.
        elif isinstance(start, Position):
            whole = whole and self._follows(start, reply)
        if not whole and reply.status is HistoryStatus.CUT:
            # The gap stands before the first message behind the newest position.
            self._open(None)
            self._gap = gap or HISTORY
            return Healed(read=True)
        if not whole:
            gap = gap or HISTORY
        messages = reply.messages if whole or isinstance(start, int) else ()
        if reply.status is HistoryStatus.CUT:
            self.position, self._gap = reply.position, None
            self._open(reply.position)
            return Healed(gap, messages, read=True)
        self._close(reply.position)
        return Healed(gap, messages)

    def _follows(self, start: Position, reply: HistoryReply) -> bool:
        """Whether a reply begins right behind a position, in the same history."""
        if reply.position is None:
            return False
        now = reply.position.history_id
        if now != start.history_id and not (
            self._handed_over and reply.previous_history_id != start.history_id
        ):
            return False
        if not reply.messages:
            return True  # The script has compared the epoch, the offset and the tag.
        return unpack_kept(reply.messages[0])[1] == (start.epoch, start.offset + 1, start.tag)

    def _open(self, start: Start, handed_over: bool = False) -> None:
        self.reading, self.start = True, start
        self._handed_over = handed_over

    def _close(self, position: Position | None) -> None:
        self.reading, self.position = False, position
        self._gap, self._handed_over = None, False


def _is_chain(messages: tuple[bytes, ...]) -> bool:
    """Whether each message follows on the one before it."""
    last: tuple[bytes, int, bytes] | None = None
    for message in messages:
        link = unpack_kept(message)[1]
        if link is None:
            return False
        epoch, offset, before = link
        if last is not None and last != (epoch, offset - 1, before):
            return False
        last = epoch, offset, tag_of(message)
    return True
