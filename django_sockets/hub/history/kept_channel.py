"""One channel with a history rule: its reader, the joins that wait, and the one open read.

At most one read of a channel is open at a time, so that each reply belongs to a known request. A
reply serves everybody whose place it covers: the reader of the channel, and the joins.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...delivery.batch import BatchObserver, GapBefore, Segment, read_batch
from ...delivery.channel import Channel, Recipient, Subscriber
from ...delivery.events import HISTORY
from ...delivery.replay import read_replay, replay_segments
from ...history import (
    NO_TAG,
    HistoryReply,
    HistoryRule,
    HistoryStatus,
    Position,
    Recovery,
    Start,
    tag_of,
)
from .joins import Join, JoinRead, lowest
from .reader import HistoryReader, index_behind
from .recent_reads import RecentRead, RecentReads

__all__ = ["KeptChannel"]


class KeptChannel:
    """The history of one subscribed channel.

    Attributes:
        name: of the channel.
        rule: its history rule.
        channel: its subscribers.
        recent: the last reads of all channels of the hub.
        reader: decides about its live messages.
        reading: a read is open; exactly one reply follows.
        renewed_at: the time at which the history was last used, as far as it is known.
        seen: the tag of the last message at that time.
    """

    def __init__(self, name: str, rule: HistoryRule, channel: Channel, recent: RecentReads) -> None:
        self.name = name
        self.rule = rule
        self.channel = channel
        self.recent = recent
        self.reader = channel.history = HistoryReader()
        self.reading = False
        self.renewed_at = 0.0
        self.seen = self.reader.last_tag
        self._start: Start = None
        self._waiting: list[Join] = []
        self._retries: list[Join] = []
        self._served: JoinRead | None = None

    # Joins

    def join(self, join: Join) -> None:
        """Let a subscriber wait for its messages; `begin_read` follows."""
        self._waiting.append(join)
        self.channel.joining += 1

    def _joins(self) -> Iterable[Join]:
        yield from self._waiting
        yield from self._retries
        if self._served is not None:
            yield from self._served.joins

    def waiting_join(self, subscriber: Subscriber) -> Join | None:
        """The join of a subscriber, if it waits."""
        return next((join for join in self._joins() if join.subscriber is subscriber), None)

    def leave(self, subscriber: Subscriber) -> None:
        """A subscriber has left the channel: its join, if there is one, ends without messages."""
        join = self.waiting_join(subscriber)
        if join is None:
            return
        for joins in (
            self._waiting,
            self._retries,
            *([self._served.joins] if self._served else ()),
        ):
            if join in joins:
                joins.remove(join)
        join.settle(Recovery())

    def fail_joins(self, error: Exception) -> None:
        """End all joins with an error."""
        for join in self._joins():
            join.fail(error)

    # Reads

    def begin_read(self) -> tuple[bool, Start]:
        """Choose the next read, unless one is open or none is needed.

        Returns:
            Whether to read the channel, and where to begin.
        """
        reader, everything = self.reader, False
        if self.reading or not (
            reader.healing or reader.unplaced or self._waiting or self._retries
        ):
            return False, None
        joins: list[Join] = []
        start: Start = reader.position if reader.healing else None
        if start is None and self._retries:
            joins, self._retries = self._retries, []
            start, everything = self.rule.messages, True
        else:
            if start is None and self._waiting:
                start = next((j.start for j in self._waiting if j.start is not None), None)
            joins = [join for join in self._waiting if join.fits(start)]
            self._waiting = [join for join in self._waiting if not join.fits(start)]
            start = lowest(joins, start)
        self._served = JoinRead(joins, start, everything=everything)
        self.reading, self._start = True, start
        return True, start

    def known_reply(self, now: float) -> HistoryReply | None:
        """The last read again, if it has all that the waiting joins need and nothing came since.

        Call `begin_read` and `take_reply` with it in place of a read.
        """
        if self.reading or self.reader.healing or self.reader.unplaced or self._retries:
            return None
        last = self.recent.find(self.name, now) if self._waiting else None
        if last is None or last.reply.position != self.reader.position:
            return None
        first = len(last.reply.messages)
        for join in self._waiting:
            index = _part_of(last, join.start)
            if index is None:
                return None
            first = min(first, index)
        messages = last.reply.messages[first:]
        return HistoryReply(HistoryStatus.WHOLE, last.reply.position, messages)

    def read_failed(self) -> None:
        """The open read was given up without a reply."""
        self.reading = False
        if self._served is not None:
            self._waiting = self._served.joins + self._waiting
            self._served = None

    def take_reply(self, reply: HistoryReply, now: float, observer: BatchObserver) -> list[Segment]:
        """Take the reply to the open read, at its place in the stream.

        Returns:
            The segments to deliver. Read on if `continued` is not None.
        """
        served = self._served
        if not self.reading or served is None:
            return []
        is_placed = self.reader.position is not None
        segments = self._heal(reply, now, observer)
        if served.joins:
            served.add(reply, self._start)
        if not is_placed and self.reader.position is not None:
            self._learn(self.reader.last_tag, *map(tag_of, served.messages), now=now)
        if reply.status is HistoryStatus.CUT and (served.joins or self.reader.healing):
            self._start = reply.position
            return segments
        self.reading, self._served = False, None
        if reply.status is HistoryStatus.UNAVAILABLE:
            # The other joins would wait for the same server.
            served.joins += self._waiting + self._retries
            self._waiting, self._retries = [], []
        self._remember(served, reply, now)
        retries = served.retries(reply)
        self._retries += retries
        served.joins = [join for join in served.joins if join not in retries]
        try:
            return segments + self._serve(served, reply, observer)
        except Exception as exc:
            for join in served.joins:  # Another attempt would probably fail in the same way.
                join.fail(exc)
            raise

    def _remember(self, served: JoinRead, reply: HistoryReply, now: float) -> None:
        """Keep a read for the joins of the next seconds."""
        last = self.recent.find(self.name, now)
        if last is not None and last.reply.position is reply.position:
            return  # It was served again, and it ages.
        if reply.status is HistoryStatus.WHOLE and served.usable and served.complete:
            whole = HistoryReply(HistoryStatus.WHOLE, reply.position, served.messages)
            self.recent.put(self.name, RecentRead(served.start, whole), now)
        else:
            self.recent.discard(self.name)

    @property
    def continued(self) -> Start:
        """Where the open read continues after a reply with the status `CUT`; None if it ended."""
        return self._start if self.reading else None

    def _heal(self, reply: HistoryReply, now: float, observer: BatchObserver) -> list[Segment]:
        channel, reader = self.channel, self.reader
        healed = reader.reply(reply, self._start)
        segments: list[Segment] = []
        if healed.gap is not None:
            channel.gap_signalled(now)
            segments.append((GapBefore(self.name, channel, healed.gap), []))
        if healed.messages:
            batch = [(self.name, message) for message in healed.messages]
            segments += read_batch(batch, {self.name: channel}, now, observer)
        if healed.more:
            reader.read_on()
        return segments

    def _learn(self, *tags: bytes, now: float) -> None:
        """The live messages begin behind these ones: they are known, and not missing."""
        for tag in tags:
            if tag != NO_TAG:
                self.channel.learn(tag[:8], int.from_bytes(tag[8:], "big"), now)

    def _serve(
        self, served: JoinRead, reply: HistoryReply, observer: BatchObserver
    ) -> list[Segment]:
        """Give each join its part, and add its subscriber to the channel."""
        if not served.joins:
            return []
        newest = reply.position or self.reader.position
        text = None if newest is None else str(newest)
        history_id = b"" if newest is None else newest.history_id
        replayed = read_replay(self.name, served.messages, history_id, observer)
        recipients: dict[tuple[bool, int], list[Recipient]] = {}
        for join in served.joins:
            part = whole, index = served.part_for(join.start, reply)
            self.channel.joining -= 1
            recipients.setdefault(part, []).append(
                self.channel.add(join.subscriber, join.send_queue)
            )
            recovered = whole and not (join.start is None or isinstance(join.start, int))
            join.settle(Recovery(recovered, text, len(replayed) - index))
        segments: list[Segment] = []
        for (whole, index), group in recipients.items():
            if not whole:
                segments.append((GapBefore(self.name, self.channel, HISTORY, tuple(group)), []))
            segments += replay_segments(self.name, self.channel, replayed[index:], tuple(group))
        return segments


def _part_of(read: RecentRead, start: Start) -> int | None:
    """The index of the first message of a read that a join misses; None if the read lacks some."""
    end, messages = read.reply.position, read.reply.messages
    if isinstance(start, Position) and end is not None:
        return index_behind(start, messages, end) if start.history_id == end.history_id else None
    if isinstance(start, int) and start == read.start:
        return max(0, len(messages) - start)
    return None
