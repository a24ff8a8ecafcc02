"""One subscribing connection takes over from another, which is too old, without a hole.

The new one subscribes to everything and holds back what it hears. Then the old one answers a last
PING: what it heard before that was delivered, and what comes after it the new one has, too. What
both have heard is dropped by the hub. Until then the old one goes on as if there were no other, and
if the new one fails, nothing has happened.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import ConnectError
from ...url import BrokerOptions
from .connection import LinkLost
from .subscriber import Reader
from .subscription_state import Owner
from .within import within

__all__ = ["Understudy", "give_back", "take_over"]

LOST = "lost while another connection took over"


class Understudy:
    """The owner of a reader that has not taken over yet: what the old one has is not lost."""

    def __init__(self, owner: Owner, old: Reader) -> None:
        self._owner = owner
        self._old = old
        self.displaced = owner.displaced
        self.refused = owner.refused

    def granted(self, channel: str) -> str | None:
        """See `Owner`. A loss is told where messages go on first, and that is not known yet."""
        reason = self._owner.granted(channel)
        if reason is not None:
            self._owner.lost([channel], reason)
        return None

    def lost(self, channels: Sequence[str], reason: str) -> None:
        """See `Owner`."""
        kept = {channel for channel, _ in self._old.carried}
        self._owner.lost([channel for channel in channels if channel not in kept], reason)

    def unreachable(self, channels: Sequence[str], error: ConnectError) -> None:
        """See `Owner`. It has had its chance: the old one goes on."""


async def take_over(old: Reader, new: Reader, owner: Owner, options: BrokerOptions) -> None:
    """Return when `new`, which has a link and nothing else, can go on where `old` can be muted.

    Raises:
        LinkLost: the new link was lost, or something was not granted there.
        asyncio.TimeoutError: no answers within `subscribe_timeout_seconds`.
    """
    for channel, name in old.wanted:
        new.want(channel, name)
    await within(options.subscribe_timeout_seconds, new.until_settled())
    if _only(old, new):
        raise LinkLost("not every subscription was granted again")
    try:
        await old.until_heard(options.dead_peer_seconds)
    except LinkLost:
        old.lose(LOST)
    else:
        owner.lost(_only(old, new), LOST)
    if new.link is None:
        raise LinkLost("the new connection was lost")


def give_back(old: Reader, new: Reader, owner: Owner) -> None:
    """The takeover failed: what was asked of `new` meanwhile is asked of `old`."""
    owner.lost(_only(new, old), "lost with a new connection")
    wanted = new.wanted
    new.mute()
    for channel, name in wanted:
        old.want(channel, name)


def _only(one: Reader, other: Reader) -> list[str]:
    """The channels that only one of them carries."""
    return [channel for channel, name in one.carried if not other.grants(name)]
