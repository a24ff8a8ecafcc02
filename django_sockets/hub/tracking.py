"""The calls of a hub for presence, which load `hub.presence` when it is first used.

`Hub` inherits from `PresenceCalls`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from ..conf import Config
from ..errors import BrokerClosed, ConfigurationError
from .publishing import Publishing
from .subscriptions import LocalSubscriptions

if TYPE_CHECKING:
    from ..presence import PresenceDiff, PresenceSnapshot
    from .presence.context import PresenceBroker
    from .presence.hub_presence import HubPresence

__all__ = ["PresenceCalls"]


class PresenceCalls(Publishing):
    """The presence of the channels of one hub.

    Attributes:
        loop: its event loop.
        subscriptions: its local subscribers by channel.
    """

    loop: asyncio.AbstractEventLoop
    subscriptions: LocalSubscriptions

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._presence: HubPresence | None = None

    async def track(
        self, channel: str, key: str, info: Any = None, *, entry: str | None = None
    ) -> None:
        """Let a member be present on a channel until `untrack`, `release` or the end of the hub.

        Several entries with one key, on any process, are one member. Calls of one turn of the event
        loop share one command for each channel.

        Args:
            key: names the member, such as the id of a user: 1 to 255 bytes of UTF-8 without control
                characters.
            info: anything with a JSON form, at most `max_presence_bytes` as JSON.
            entry: names this entry on the channel among those of the hub, such as the id of a
                connection. Default: None, the key. A second call with the same entry replaces its
                key and info.

        Raises:
            ChannelError, EncodeError, PayloadTooLarge, PresenceError: the entry is not present. It
                is as it was before if there was one.
            ConfigurationError: the key or the entry is not valid, or the broker has no presence.
            BrokerClosed: after `aclose`.
        """
        (name,) = self.names_while_open([channel])
        await self._open_presence().track(name, key, info, entry)

    async def untrack(self, channel: str, entry: str) -> None:
        """Remove an entry of this hub from a channel at once. Without such an entry, do nothing.

        If the server cannot be reached, the hub tries again until it has removed the entry.

        Args:
            entry: as for `track`; by default the key.

        Raises:
            ChannelError: the name is not valid.
            BrokerClosed: after `aclose`.
        """
        (name,) = self.names_while_open([channel])
        if self._presence is not None:
            await self._presence.untrack(name, entry)

    def release(self, entry: str, channels: Iterable[str] | None = None) -> None:
        """Remove an entry of this hub after `presence_grace_seconds`, as when a connection ends.

        If another entry with its key comes meanwhile, on any process, nobody sees the key leave.

        Args:
            channels: Default: None, all channels of the entry.
        """
        if self._presence is not None and not self.closed:
            self._presence.release(entry, channels)

    async def presence(self, channel: str) -> dict[str, list[Any]]:
        """The members of a channel, on all processes: key -> the info of each of its entries.

        A channel that this hub watches or is tracked on is answered without the server. Members of
        a process whose lease has ended are left out. Do not change the infos: other lists and
        events of this process may contain the same objects.

        Raises:
            ChannelError, ConfigurationError: the name is not valid, or the broker has no presence.
            PresenceError: the server did not answer, or refused.
            BrokerClosed: after `aclose`.
        """
        (name,) = self.names_while_open([channel])
        return await self._open_presence().members(name)

    def _open_presence(self) -> HubPresence:
        if self.closed:
            raise BrokerClosed(self.config.url)
        if self._presence is None:
            from ..broker import SupportsPresence
            from .presence.context import Context
            from .presence.hub_presence import HubPresence

            if not isinstance(self._broker, SupportsPresence):
                raise ConfigurationError(f"{self.config.url}: this broker has no presence")
            broker = cast("PresenceBroker", self._broker)
            context = Context(broker, self.config.url, self.counters, self.loop)
            self._presence = HubPresence(self.subscriptions, context)
        return self._presence

    def _presence_stats(self) -> dict[str, int]:
        """The present numbers of `Hub.stats`. For any thread."""
        presence = self._presence
        if presence is None or self.closed:
            return {"presence_members": 0, "presence_watched": 0}
        return presence.stats()

    def presence_snapshot(self, channel: str, snapshot: PresenceSnapshot | None) -> None:
        """See `PresenceSink`."""
        if self._presence is not None:
            self._presence.take_snapshot(channel, snapshot)

    def presence_diff(self, channel: str, diff: PresenceDiff) -> None:
        """See `PresenceSink`."""
        if self._presence is not None:
            self._presence.take_diff(channel, diff)

    def presence_lost(self, channels: Sequence[str], reason: str) -> None:
        """See `PresenceSink`."""
        if self._presence is not None:
            self._presence.lost(channels)
