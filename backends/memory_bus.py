"""The buses of this process: the subscribers of each channel, and its kept messages."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..forks import PerProcess
from ..presence import PresenceDiff
from .memory_history import MemoryHistory
from .memory_presence import MemoryPresence
from .memory_queues import MemoryQueues
from .watches import watch_of

if TYPE_CHECKING:
    from .memory_inbox import MemoryInbox

__all__ = ["MemoryBus", "bus_named"]

logger = logging.getLogger("django_sockets")


class MemoryBus:
    """The state that brokers with one name share. Use it with `lock` held.

    Attributes:
        subscribers: the inboxes of the brokers that have subscribed, by channel or watch.
        history: the kept messages.
        queues: the queues.
        presence: the entries and the leases.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.history = MemoryHistory()
        self.subscribers: dict[str, set[MemoryInbox]] = {}
        self.queues = MemoryQueues(self._ring)
        self.presence = MemoryPresence(self._changed)

    def remove(self, inbox: MemoryInbox, names: Iterable[str]) -> None:
        """Remove the subscriptions of one inbox to channels or watches."""
        for name in names:
            inboxes = self.subscribers.get(name)
            if inboxes is not None:
                inboxes.discard(inbox)
                if not inboxes:
                    del self.subscribers[name]

    def _ring(self, channel: str, doorbell: bytes) -> None:
        for inbox in self.subscribers.get(channel, ()):
            inbox.put(channel, doorbell)

    def _changed(self, channel: str, diff: PresenceDiff) -> None:
        watch = watch_of(channel)
        for inbox in self.subscribers.get(watch, ()):
            inbox.put_diff(watch, diff)


class _Buses:
    """The buses of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_name: dict[str, MemoryBus] = {}


def _warn_of_fork(inherited: _Buses) -> None:
    if inherited.by_name:
        logger.warning(
            "memory:// is a separate bus in this forked process: messages published here do not "
            "reach the parent. Use a server (redis://...) to reach other processes."
        )


_buses = PerProcess(_Buses, _warn_of_fork)


def bus_named(name: str) -> MemoryBus:
    """The bus with this name, which is made if there is none."""
    buses = _buses.current
    with buses.lock:
        return buses.by_name.setdefault(name, MemoryBus())
