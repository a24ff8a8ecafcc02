"""The last reads for joins, so that clients that come back one after the other share one read.

After a restart, clients come back over some seconds. Most of them miss the same messages. The hub
reads a channel for the first of them, and keeps what it has read for a few seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from ...history import HistoryReply, Start

__all__ = ["RecentRead", "RecentReads"]

RECENT_SECONDS = 5.0
"""The time for which a read is kept."""
RECENT_BYTES = 8 * 1024 * 1024
"""The most that one hub keeps, of all channels together."""
ENTRY_BYTES = 500
"""About what an entry takes apart from its messages."""


class RecentRead(NamedTuple):
    """One read.

    Attributes:
        start: where it began.
        reply: has all of its messages.
    """

    start: Start
    reply: HistoryReply


class RecentReads:
    """The last reads of the channels of one hub. The oldest are removed first."""

    def __init__(self) -> None:
        self._reads: OrderedDict[str, tuple[RecentRead, float, int]] = OrderedDict()
        self._bytes = 0

    def put(self, name: str, read: RecentRead, now: float) -> None:
        """Keep the read of a channel in place of the one before."""
        self.discard(name)
        size = ENTRY_BYTES + sum(map(len, read.reply.messages))
        self._reads[name] = read, now, size
        self._bytes += size
        while self._reads:
            oldest, (_, since, _) = next(iter(self._reads.items()))
            if self._bytes <= RECENT_BYTES and now - since < RECENT_SECONDS:
                return
            self.discard(oldest)

    def find(self, name: str, now: float) -> RecentRead | None:
        """The last read of a channel, unless it is too old."""
        found = self._reads.get(name)
        return found[0] if found is not None and now - found[1] < RECENT_SECONDS else None

    def discard(self, name: str) -> None:
        """Forget the read of a channel."""
        found = self._reads.pop(name, None)
        if found is not None:
            self._bytes -= found[2]
