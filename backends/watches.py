"""Watched channels beside subscribed ones: their internal names and their items in the stream.

A watch of the presence of a channel is a subscription with a name of its own (`watch_of`), which no
application can use. What arrives for it passes through the same batches as messages, so that it
keeps its place in the stream. `deliver_mixed` and `report_lost` divide a batch or a loss between
the methods of the sink.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Generator, Sequence
from typing import Any, TypeAlias, cast

import msgspec

from ..broker import HistorySink, PresenceSink, Sink
from ..history import HistoryReply
from ..presence import PresenceDiff, PresenceSnapshot

__all__ = [
    "NEWER_FORMAT",
    "Deferred",
    "DeliverNow",
    "Item",
    "NewerDiff",
    "SnapshotItem",
    "channel_of",
    "deliver_mixed",
    "is_watch",
    "report_lost",
    "watch_of",
]

WATCH = "\x02"
NEWER_FORMAT = "changes in a newer format"
"""Reason of a loss: a process with a newer version has published a diff."""


class SnapshotItem(msgspec.Struct, frozen=True):
    """The reply to a read of a watched channel.

    Attributes:
        snapshot: None if there is none.
        problem: why there is none.
    """

    snapshot: PresenceSnapshot | None
    problem: str = ""


class NewerDiff(msgspec.Struct, frozen=True):
    """A diff that this version cannot read."""


Item: TypeAlias = tuple[str, bytes | HistoryReply | SnapshotItem | PresenceDiff | NewerDiff]
"""The name of a subscription or watch, and a part of its stream."""
DeliverNow: TypeAlias = Callable[[list[Item]], Awaitable[None] | None]


def watch_of(channel: str) -> str:
    """The name of the watch of a channel."""
    return WATCH + channel


def is_watch(name: str) -> bool:
    """Whether it is the name of a watch."""
    return name.startswith(WATCH)


def channel_of(name: str) -> str:
    """The channel of a subscription or watch."""
    return name.removeprefix(WATCH)


class Deferred:
    """Calls an async function once it is awaited.

    It is no coroutine, because a broker may be closed before that, and Python warns of coroutines
    that were never awaited.
    """

    def __init__(self, function: Callable[[], Awaitable[None]]) -> None:
        self._function = function

    def __await__(self) -> Generator[Any, None, None]:
        return self._function().__await__()


async def deliver_mixed(
    sink: Sink, batch: Sequence[Item], wanted: Callable[[], Container[str]], deliver: DeliverNow
) -> None:
    """Pass a batch with replies or diffs to the sink, in order.

    Args:
        wanted: returns the names of the present subscriptions and watches.
        deliver: passes messages to the sink.
    """
    names = wanted()
    start = 0
    for index, (name, item) in enumerate(batch):
        if isinstance(item, (bytes, HistoryReply)):
            continue
        if start < index and await _deliver_run(sink, batch[start:index], names, deliver):
            names = wanted()
        start = index + 1
        if name in names:
            _give(cast("PresenceSink", sink), channel_of(name), item)
    if start < len(batch):
        await _deliver_run(sink, batch[start:], names, deliver)


async def _deliver_run(
    sink: Sink, run: Sequence[Item], names: Container[str], deliver: DeliverNow
) -> bool:
    """Pass messages and replies of the history to the sink; whether anything was awaited."""
    items = [item for item in run if item[0] in names]
    if not items:
        return False
    if any(isinstance(item, HistoryReply) for _, item in items):
        batch = cast("Sequence[tuple[str, bytes | HistoryReply]]", items)
        await cast("HistorySink", sink).deliver_with_history(batch)
        return True
    waiting = deliver(items)
    if waiting is None:
        return False
    await waiting
    return True


def _give(sink: PresenceSink, channel: str, item: SnapshotItem | PresenceDiff | NewerDiff) -> None:
    if isinstance(item, PresenceDiff):
        sink.presence_diff(channel, item)
    elif isinstance(item, SnapshotItem):
        sink.presence_snapshot(channel, item.snapshot)
    else:
        sink.presence_lost([channel], NEWER_FORMAT)


def report_lost(sink: Sink, names: Sequence[str], reason: str) -> None:
    """Report a loss to the sink, of subscriptions and of watches."""
    subscribed = [name for name in names if not is_watch(name)]
    if subscribed:
        sink.lost(subscribed, reason)
    if len(subscribed) < len(names):
        watched = [channel_of(name) for name in names if is_watch(name)]
        cast("PresenceSink", sink).presence_lost(watched, reason)
