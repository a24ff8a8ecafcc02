"""The watched channels of one hub: begins and ends their watches at the broker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ...errors import BrokerClosed, BrokerError
from .context import RETRY_SECONDS, Context
from .watched_channel import WatchedChannel, WatchOwner

__all__ = ["Watches"]


class Watches:
    """The watched channels.

    Args:
        owner: of the channels.
        is_used: whether the hub has entries on a channel, so that its watch must stay.
    """

    def __init__(self, owner: WatchOwner, context: Context, is_used: Callable[[str], bool]) -> None:
        self._owner = owner
        self._context = context
        self._is_used = is_used
        self._watched: dict[str, WatchedChannel] = {}
        self._to_open: dict[str, None] = {}

    def __iter__(self) -> Iterator[WatchedChannel]:
        return iter(list(self._watched.values()))

    def __len__(self) -> int:
        """The number of watched channels. For any thread."""
        return len(self._watched)

    def get(self, channel: str) -> WatchedChannel | None:
        """The watch of a channel, if there is one."""
        return self._watched.get(channel)

    def open(self, channel: str) -> WatchedChannel:
        """The watch of a channel, which begins if there is none."""
        watched = self._watched.get(channel)
        if watched is None:
            watched = WatchedChannel(channel, self._owner, self._context)
            self._watched[channel] = watched
            self._open_soon(channel)
        return watched

    def close_if_unused(self, channel: str) -> bool:
        """End the watch of a channel without watchers and own entries; True if it was ended."""
        watched = self._watched.get(channel)
        if watched is None or watched.watchers or watched.arriving or self._is_used(channel):
            return False
        del self._watched[channel]
        watched.fail(BrokerClosed(self._context.url))
        if not self._context.closed:
            self._context.spawn(
                self._context.broker.unwatch_presence([channel]), "end the watch of a channel"
            )
        return True

    def end(self) -> None:
        """The hub ends: let the calls fail that wait for a channel."""
        for watched in self:
            watched.fail(BrokerClosed(self._context.url))

    def _open_soon(self, channel: str) -> None:
        if not self._to_open and not self._context.closed:
            self._context.spawn(self._open_all(), "watch channels")
        self._to_open[channel] = None

    async def _open_all(self) -> None:
        """Watch the channels that were opened in one turn of the event loop."""
        names = [name for name in self._to_open if name in self._watched]
        self._to_open.clear()
        if not names:
            return
        try:
            await self._context.broker.watch_presence(names)
        except BrokerError as exc:
            self._context.failed("watch channels", exc)
            for name in names:
                watched = self._watched.get(name)
                if watched is not None:
                    watched.fail(exc)
            self._context.after(RETRY_SECONDS, lambda: self._open_again(names))

    def _open_again(self, names: Iterable[str]) -> None:
        for name in names:
            watched = self._watched.get(name)
            if watched is not None and not watched.settled:
                self._open_soon(name)
