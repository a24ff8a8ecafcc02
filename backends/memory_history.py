"""The kept messages of a bus in this process, with the rules of the server's scripts.

It does the same as the Lua scripts in `client.history_scripts`, step by step. A test compares both.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from ..history import (
    NO_TAG,
    READ_BYTES,
    HistoryReply,
    HistoryRule,
    HistoryStatus,
    Position,
    Start,
    position_field,
    position_of,
    tag_of,
    with_field,
)
from .memory_member import MemoryMember

__all__ = ["MemoryHistory", "MemoryHistoryCalls"]

FIRST_SWEEP = 1024
"""With this many channels, those that have expired are removed for the first time."""


class _Kept:
    """The history of one channel.

    Attributes:
        messages: the newest ones in order; empty bytes for one that was too large.
    """

    __slots__ = ("epoch", "expires_at", "messages", "offset", "tag")

    def __init__(self, epoch: bytes) -> None:
        self.epoch = epoch
        self.offset = 0
        self.tag = NO_TAG
        self.messages: deque[bytes] = deque()
        self.expires_at = 0.0

    @property
    def lowest(self) -> int:
        return self.offset - len(self.messages) + 1

    def after(self, offset: int) -> Iterator[bytes]:
        """The messages with higher offsets; the lowest of them must be kept."""
        for index in range(offset + 1 - self.lowest, len(self.messages)):
            yield self.messages[index]


class MemoryHistory:
    """The histories of all channels of a bus. The caller holds the lock of the bus.

    Args:
        new_epoch: makes 8 bytes; for tests.
    """

    def __init__(self, new_epoch: Callable[[], bytes] = lambda: os.urandom(8)) -> None:
        self._new_epoch = new_epoch
        self._channels: dict[str, _Kept] = {}
        self._sweep_at = FIRST_SWEEP
        self.id = os.urandom(8)

    def keep(
        self, channel: str, header: bytes, payload: bytes, rule: HistoryRule, now: float
    ) -> bytes:
        """Give a message its place; returns it with the position field."""
        kept = self._of(channel, rule, now)
        kept.offset += 1
        message = with_field(header) + position_field(kept.epoch, kept.offset, kept.tag) + payload
        kept.tag = tag_of(header)
        kept.messages.append(b"" if len(payload) > rule.message_bytes else message)
        while len(kept.messages) > rule.messages:
            kept.messages.popleft()
        return message

    def read(
        self,
        channel: str,
        start: Start,
        rule: HistoryRule,
        now: float,
        messages: int,
        max_bytes: int = READ_BYTES,
    ) -> HistoryReply:
        """See `SupportsHistory.read_history`."""
        kept = self._of(channel, rule, now)
        newest = Position(kept.epoch, kept.offset, kept.tag, self.id)
        if start is None:
            return HistoryReply(HistoryStatus.WHOLE, newest)
        broken = HistoryReply(HistoryStatus.BROKEN, newest)
        if isinstance(start, Position):
            known = start.offset
            if start.epoch != kept.epoch or not kept.lowest - 1 <= known <= kept.offset:
                return broken
            if known == kept.offset:
                return (
                    HistoryReply(HistoryStatus.WHOLE, newest) if start.tag == kept.tag else broken
                )
        else:
            known = max(kept.lowest - 1, kept.offset - start)
        found: list[bytes] = []
        size = 0
        status = HistoryStatus.WHOLE
        for message in kept.after(known):
            if not message:
                if isinstance(start, Position):
                    return broken
                found, size, status = [], 0, HistoryStatus.BROKEN
                continue
            size += len(message)
            if found and (size > max_bytes or len(found) == messages):
                behind = position_of(found[-1], self.id)
                return HistoryReply(HistoryStatus.CUT, behind, tuple(found))
            found.append(message)
        return HistoryReply(status, newest, tuple(found))

    def remove(self, channel: str) -> None:
        """Remove the history of a channel, as an eviction does."""
        self._channels.pop(channel, None)

    def _of(self, channel: str, rule: HistoryRule, now: float) -> _Kept:
        """The history of a channel, which is made if there is none; its time starts again."""
        kept = self._channels.get(channel)
        if kept is None or kept.expires_at <= now:
            if kept is None and len(self._channels) >= self._sweep_at:
                self._sweep(now)
            kept = self._channels[channel] = _Kept(self._new_epoch())
        kept.expires_at = now + rule.seconds
        return kept

    def _sweep(self, now: float) -> None:
        """Remove what has expired. The next sweep follows after the number has doubled."""
        self._channels = {
            channel: kept for channel, kept in self._channels.items() if kept.expires_at > now
        }
        self._sweep_at = max(FIRST_SWEEP, 2 * len(self._channels))


class MemoryHistoryCalls(MemoryMember):
    """The methods of `SupportsHistory`."""

    unkept = 0

    async def subscribe_with_history(self, starts: Mapping[str, Start]) -> None:
        """See `SupportsHistory`."""
        await self._subscribe_and_read(
            {channel: self._read_of(channel, start) for channel, start in starts.items()}
        )

    def request_history(self, channel: str, start: Start) -> None:
        """See `SupportsHistory`."""
        self._read_in_stream(channel, self._read_of(channel, start))

    def _read_of(self, channel: str, start: Start) -> Callable[[], HistoryReply]:
        messages = self._rule(channel).messages
        return lambda: self._read_history(channel, start, messages, READ_BYTES)

    def _rule(self, channel: str) -> HistoryRule:
        rule = self.url.history.rule_for(channel)
        if rule is None:
            raise ValueError(f"channel {channel!r} has no history rule")
        return rule

    def _read_history(
        self, channel: str, start: Start, messages: int, max_bytes: int
    ) -> HistoryReply:
        rule = self._rule(channel)
        return self._bus.history.read(channel, start, rule, time.monotonic(), messages, max_bytes)

    async def read_history(
        self, starts: Mapping[str, Start], *, messages: int = 100, max_bytes: int = READ_BYTES
    ) -> dict[str, HistoryReply]:
        """See `SupportsHistory`."""
        with self._open_bus():
            return {
                channel: self._read_history(channel, start, messages, max_bytes)
                for channel, start in starts.items()
            }
