"""A read of the presence of a channel behind its watch, and the diffs of the watch."""

from __future__ import annotations

import logging
from typing import cast

from ...broker import PresenceSink, Sink
from ...log import LogThrottle
from ...presence import NewerFormat, PresenceDiff, parse_diff
from ...url import BrokerURL
from ..watches import NewerDiff, SnapshotItem, channel_of
from .connection import Connection
from .open_reads import OpenRead
from .presence_scripts import snapshot_of

__all__ = ["DiffReader", "PresenceRead"]

logger = logging.getLogger("django_sockets")


class PresenceRead(OpenRead):
    """One open read of the presence of a channel.

    Args:
        name: the key of the entries, which is also the name of the diffs.
    """

    __slots__ = ("size_bytes",)
    subject = "the presence"
    joins = True

    def __init__(self, channel: str, name: bytes) -> None:
        super().__init__(channel, name, (b"HGETALL", name))
        self.size_bytes = 0

    def parse(self, reply: object, connection: Connection | None) -> SnapshotItem:
        """See `OpenRead`."""
        try:
            snapshot = snapshot_of(reply)
        except ValueError as exc:
            return self.unavailable(str(exc))
        entries = snapshot.entries
        self.size_bytes = sum(len(field) + len(value) for field, value in entries.items())
        return SnapshotItem(snapshot)

    def unavailable(self, problem: str) -> SnapshotItem:
        """See `OpenRead`."""
        return SnapshotItem(None, problem)

    async def give(self, sink: Sink, item: SnapshotItem) -> None:
        """See `OpenRead`."""
        cast("PresenceSink", sink).presence_snapshot(channel_of(self.channel), item.snapshot)


class DiffReader:
    """Reads the diffs of watched channels."""

    def __init__(self, url: BrokerURL) -> None:
        self._url = url
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)

    def item(self, watch: str, payload: bytes) -> PresenceDiff | NewerDiff | None:
        """The item of the stream for a published payload; None if another program wrote it."""
        try:
            return parse_diff(payload)
        except NewerFormat:
            return NewerDiff()
        except ValueError as exc:
            text = "%s: a message among the changes of the presence of %r is skipped: %s"
            channel = channel_of(watch)
            self._throttle.log(
                logging.WARNING,
                "poison",
                text,
                self._url,
                channel,
                exc,
                extra={"broker": self._url, "channel": channel, "reason": exc},
            )
            return None
