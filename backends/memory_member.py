"""The subscriptions of one broker to a bus inside this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from ..broker import Sink
from ..errors import BrokerClosed
from ..history import HistoryReply
from ..url import BrokerURL
from .memory_inbox import MemoryInbox
from .watches import SnapshotItem

if TYPE_CHECKING:
    from .memory_bus import MemoryBus

__all__ = ["MemoryMember", "Read"]

Read: TypeAlias = Callable[[], HistoryReply | SnapshotItem]
"""Reads a channel or watch, with the bus locked."""


class MemoryMember:
    """The part of a broker that its abilities share."""

    def __init__(self, url: BrokerURL, sink: Sink, bus: MemoryBus) -> None:
        self.url = url
        self._bus = bus
        self._inbox = MemoryInbox(url, sink, bus)
        # Names that only calls of `_subscribe_and_read` that still wait have requested.
        self._pending: dict[str, object] = {}
        self._closed = False

    @contextlib.contextmanager
    def _open_bus(self) -> Iterator[MemoryBus]:
        """The bus with its lock held. Raises BrokerClosed after `aclose`."""
        if self._closed:
            raise BrokerClosed(self.url)
        with self._bus.lock:
            yield self._bus

    async def subscribe(self, channels: Sequence[str]) -> None:
        with self._open_bus() as bus:
            self._inbox.start()
            for channel in channels:
                bus.subscribers.setdefault(channel, set()).add(self._inbox)
                self._inbox.channels.add(channel)
                self._pending.pop(channel, None)

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        with self._bus.lock:
            self._inbox.channels.difference_update(channels)
            self._bus.remove(self._inbox, channels)
            for channel in channels:
                self._pending.pop(channel, None)

    async def _subscribe_and_read(self, reads: Mapping[str, Read]) -> None:
        """Subscribe to names and read each; returns once the sink has all results."""
        new = [name for name in reads if name not in self._inbox.channels]
        await self.subscribe(list(reads))
        given = []
        call = object()
        self._pending.update(dict.fromkeys(new, call))
        try:
            for name, read in reads.items():
                reply = self._read_in_stream(name, read)
                if reply is not None:
                    given.append(self._inbox.delivery_of(reply))
            await asyncio.wait(given)
            if self._closed:
                raise BrokerClosed(self.url)
        except BaseException:
            await self.unsubscribe([name for name in new if self._pending.get(name) is call])
            raise
        for name in new:
            if self._pending.get(name) is call:
                del self._pending[name]

    def _read_in_stream(self, name: str, read: Read) -> HistoryReply | SnapshotItem | None:
        """Pass the result of a read to the sink, in its place; None if the name is not wanted."""
        with self._bus.lock:
            if name not in self._inbox.channels:
                return None
            reply = read()
            self._inbox.put_reply(name, reply)
        return reply

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self.unsubscribe(list(self._inbox.channels))
        await self._inbox.aclose()
