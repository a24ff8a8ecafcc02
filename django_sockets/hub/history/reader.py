"""Heals one channel from its history: which live messages to take, and when to signal a gap.

`HistoryReader` decides and does nothing else. The hub (`healing`) asks it about each live message
of a channel with a history rule, about each reply, and about each loss, and then acts. Every
message that the reader lets through passes the sequence tracker of the channel as well, which drops
what is repeated. Healing never resets the tracker.

Only messages of the same history follow on each other. Each kept message names the one before it by
epoch, offset and tag. Two servers that took different messages after a failover may have the same
offsets and even the same last message. The history id of a server tells them apart.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ...delivery.channel import KeptEnvelope
from ...delivery.envelope import (
    KEPT,
    KEPT_MARKS,
    PLACE_START,
    HistoryLink,
    NewerVersion,
    NotOurs,
    unpack_kept,
)
from ...delivery.events import HISTORY
from ...delivery.sequence import SequenceTracker
from ...history import NO_TAG, HistoryReply, HistoryStatus, Position, Start, tag_of

__all__ = ["Healed", "HistoryReader", "index_behind", "is_chain", "same_place"]

BROKEN, CUT, UNAVAILABLE = HistoryStatus.BROKEN, HistoryStatus.CUT, HistoryStatus.UNAVAILABLE

_unpack = KEPT.unpack_from
_START, _FIELDS_BYTES, _AGE_START = KEPT_MARKS
_KEPT_BYTES = KEPT.size


class Healed(NamedTuple):
    """The steps after a reply, in this order.

    Attributes:
        gap: the reason of a gap to signal, or None.
        messages: kept messages to deliver like live ones. `take` accepts each of them.
        more: call `read_on` behind them, because another reply follows.
    """

    gap: str | None = None
    messages: tuple[bytes, ...] = ()
    more: bool = False


class HistoryReader:
    """The place of one channel in its history.

    Attributes:
        healing: messages behind `position` are missing, and must be read from there. Until then,
            live messages with a place are dropped, because the reply contains them.
        incomplete: `take` has found that messages are missing; the user clears it.
        unplaced: the position, or its history id, is unknown and should be read.
        refused: the last reply was that the history is unavailable; read the position later.
    """

    __slots__ = (
        "_cut", "_digits", "_epoch", "_handed_over", "_history_id", "_place", "_tag", "healing",
        "incomplete", "refused", "unplaced",
    )  # fmt: skip

    def __init__(self) -> None:
        self._forget()
        self.healing = False
        self.incomplete = False
        self.unplaced = True
        self.refused = False
        self._handed_over = self._cut = False

    @property
    def position(self) -> Position | None:
        """The place behind the last message; None if it is unknown."""
        if not self._tag:
            return None
        return Position(self._epoch, int(self._digits), self._tag, self._history_id)

    @property
    def last_tag(self) -> bytes:
        """The tag of the last message; it changes with each message."""
        return self._tag

    def abandon(self) -> None:
        """Give up to heal, because a gap was signalled; the position is unknown."""
        self.healing = self._handed_over = self._cut = False
        self.unplaced = True
        self._forget()

    def _forget(self) -> None:
        self._epoch = self._place = self._digits = self._tag = self._history_id = b""

    def _move_to(self, position: Position) -> None:
        self._move(position.epoch, position.offset, position.tag)
        self._history_id = position.history_id

    def _move(self, epoch: bytes, offset: int, tag: bytes) -> None:
        self._epoch, self._place = epoch, PLACE_START + epoch
        self._digits, self._tag = b"%d" % offset, tag

    def take(self, message: bytes, tracker: SequenceTracker) -> KeptEnvelope | None:
        """See `ChannelHistory`."""
        try:
            (
                start, flags, fields, publisher, counter, previous, age_start, age,
                place, digits, before,
            ) = _unpack(message)  # fmt: skip
        except struct.error:
            return self._take_other(message, tracker)
        # The message before it and the epoch determine the offset. The row "reading a message" of
        # docs/benchmarks has no room for converting it.
        if (
            before != self._tag
            or place != self._place
            or self.healing
            or start != _START
            or fields != _FIELDS_BYTES
            or age_start != _AGE_START
            or not digits.isdigit()
        ):
            return self._take_other(message, tracker)
        self._digits = digits
        self._tag = tag = message[8:24]
        at = self._epoch, digits, tag, self._history_id
        return publisher, counter, previous, age, flags, None, message[_KEPT_BYTES:], at

    def _take_other(self, message: bytes, tracker: SequenceTracker) -> KeptEnvelope | None:
        """`take` for a message with other fields, or which does not follow on the last one."""
        envelope, link = unpack_kept(message)
        if link is None:
            return *envelope, None
        if self.healing:
            return None
        epoch, offset, before = link
        tag, here = tag_of(message), self.position
        if here is None or link == (here.epoch, here.offset + 1, here.tag):
            is_next = True
        else:
            is_next = epoch != here.epoch and offset == 1 and before == NO_TAG
        if not tracker.has_received(envelope[0], envelope[1]):
            # Without a position, nothing is known to be missing: a gap was signalled before.
            if not is_next:
                self.healing = self.incomplete = True
                return None
            self._move(epoch, offset, tag)
        # Otherwise the message is late or repeated, and the tracker drops it.
        return *envelope, (epoch, b"%d" % offset, tag, self._history_id)

    def read_on(self) -> None:
        """Another reply follows: drop live messages until then."""
        self.healing = True

    def lost(self, *, handed_over: bool) -> bool:
        """The connection that delivered the channel was lost.

        Args:
            handed_over: a live server has given the channel to another one, as when a slot of a
                cluster moves.

        Returns:
            Whether the channel can perhaps be healed. False: signal a gap now.
        """
        if not self._tag:
            self.unplaced = True
            return False
        self.healing = True
        # A hand-over excuses another history id only if the server did not fail in between.
        self._cut = self._cut or not handed_over
        self._handed_over = handed_over
        return True

    def renamed(self, history_id: bytes) -> None:
        """The server has another history id for the same history."""
        if self._tag:
            self._history_id = history_id

    def reply(self, reply: HistoryReply, start: Start) -> Healed:
        """Take a reply that stands in the stream.

        If `healing` is still set afterwards, and `Healed.more` is not, the reply says nothing about
        the messages behind `position`.

        Args:
            start: where the read began.
        """
        self.refused = reply.status is UNAVAILABLE
        if self.healing:
            return self._heal(reply, start)
        newest = reply.position
        if reply.status is not CUT:
            self.unplaced = False
        if reply.status in (CUT, UNAVAILABLE) or newest is None:
            return Healed()
        here = self.position
        if here is None or same_place(here, newest):
            self._move_to(newest)
            return Healed()
        if newest.epoch != here.epoch and not newest.offset:
            return Healed()  # The history was removed, and its next message will be the first one.
        self.healing = True  # Messages before the reply have not arrived.
        return self._heal(reply, start)

    def _heal(self, reply: HistoryReply, start: Start) -> Healed:
        here, end = self.position, reply.position
        if here is None or reply.status is UNAVAILABLE:
            return self._give_up(None)
        cut = reply.status is CUT
        known = isinstance(start, Position) and start.epoch == here.epoch
        before = known and isinstance(start, Position) and start.offset <= here.offset
        exact = isinstance(start, Position) and same_place(start, here)
        if reply.status is BROKEN:
            return self._give_up(end) if exact else Healed()
        if end is None or not self._same_history(end, reply.previous_history_id):
            return self._give_up(None if cut else end, unplaced=cut)
        index = None
        if is_chain(reply.messages):
            index = index_behind(here, reply.messages, end)
        if index is not None:
            self._history_id = end.history_id
            self.healing = self._handed_over = self._cut = self.unplaced = False
            return Healed(None, reply.messages[index:], cut)
        if not before or (cut and end.offset < here.offset):
            return Healed()
        return self._give_up(None if cut else end, unplaced=cut)

    def _give_up(self, newest: Position | None, *, unplaced: bool = False) -> Healed:
        """Signal a gap, and go on behind the newest message, or without a position."""
        self.healing = self._handed_over = self._cut = False
        self.unplaced = unplaced
        self._forget()
        if newest is not None:
            self._move_to(newest)
        return Healed(HISTORY)

    def _same_history(self, end: Position, previous_history_id: bytes) -> bool:
        return end.history_id == self._history_id or (
            self._handed_over and not self._cut and previous_history_id != self._history_id
        )


def same_place(one: Position, other: Position) -> bool:
    """Whether two positions are equal, apart from the history id."""
    return one.offset == other.offset and one.tag == other.tag and one.epoch == other.epoch


def is_chain(messages: tuple[bytes, ...]) -> bool:
    """Whether each message follows on the one before it, and has a known format."""
    last: HistoryLink | None = None
    for message in messages:
        try:
            link = unpack_kept(message)[1]
        except (NewerVersion, NotOurs):
            return False
        if link is None:
            return False
        epoch, offset, before = link
        if last is not None and last != (epoch, offset - 1, before):
            return False
        last = epoch, offset, tag_of(message)
    return True


def index_behind(position: Position, messages: tuple[bytes, ...], end: Position) -> int | None:
    """The index of the first message behind a position; None if none of them follows on it.

    Args:
        messages: a chain.
        end: the place behind them.
    """
    if same_place(position, end):
        return len(messages)
    if not messages or (first := unpack_kept(messages[0])[1]) is None:
        return None
    index = position.offset + 1 - first[1]
    if not 0 <= index < len(messages):
        return None
    link = unpack_kept(messages[index])[1]
    return index if link == (position.epoch, position.offset + 1, position.tag) else None
