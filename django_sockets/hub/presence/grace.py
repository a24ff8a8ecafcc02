"""The entries of connections that have ended, which stay for a while: their clients may return."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from ...overrides import Timer
from .context import Context

__all__ = ["Grace"]


class Grace:
    """The entries of one hub that are removed after `presence_grace_seconds`.

    One timer serves all of them, because all have the same time.

    Args:
        remove: removes an entry of a channel.
    """

    def __init__(self, context: Context, remove: Callable[[str, str], object]) -> None:
        self._context = context
        self._seconds = context.url.options.presence_grace_seconds
        self._remove = remove
        # (channel, key) -> entry -> its place in `_queue`; an older place of an entry is void.
        self._leaving: dict[tuple[str, str], dict[str, object]] = {}
        self._queue: deque[tuple[float, object, str, str, str]] = deque()
        self._timer: Timer | None = None

    def add(self, channel: str, key: str, entry: str) -> None:
        """Remove an entry after the grace."""
        if not self._seconds:
            self._remove(channel, entry)
            return
        mark = object()
        self._leaving.setdefault((channel, key), {})[entry] = mark
        due = self._context.clock.time() + self._seconds
        self._queue.append((due, mark, channel, key, entry))
        if self._timer is None:
            self._timer = self._context.after(self._seconds, self._look)

    def has(self, channel: str, key: str, entry: str) -> bool:
        """Whether an entry waits for its removal."""
        return entry in self._leaving.get((channel, key), ())

    def __bool__(self) -> bool:
        return bool(self._leaving)

    def keep(self, channel: str, key: str, entry: str) -> bool:
        """Do not remove an entry, because it was put again or removed otherwise.

        Returns:
            Whether it would have been removed.
        """
        entries = self._leaving.get((channel, key), {})
        found = entries.pop(entry, None)
        if not entries:
            self._leaving.pop((channel, key), None)
        return found is not None

    def returned(self, channel: str, keys: Iterable[str]) -> None:
        """Another connection has these keys now: remove the entries that wait, without delay."""
        for key in keys:
            for entry in self._leaving.pop((channel, key), ()):
                self._remove(channel, entry)

    def _look(self) -> None:
        self._timer = None
        now = self._context.clock.time()
        while self._queue:
            due, mark, channel, key, entry = self._queue[0]
            if self._leaving.get((channel, key), {}).get(entry) is not mark:
                self._queue.popleft()
            elif due <= now:
                self._queue.popleft()
                self.keep(channel, key, entry)
                self._remove(channel, entry)
            else:
                self._timer = self._context.after(due - now, self._look)
                return
