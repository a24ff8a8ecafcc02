"""A new subscribing connection replaces one that is too old, without losing a message.

The new connection (the standby) subscribes to all channels and holds back its messages. Then the
old one answers a last PING. It delivered all messages that arrived before the reply; later ones
arrive on the standby as well. The hub drops the messages that arrived on both. Until the
PING is answered the old connection works as usual, and a failure of the standby has no effect.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...deadlines import with_deadline
from ...errors import ConnectError
from ...url import BrokerOptions
from .connection import ConnectionLost
from .subscriber import Subscriber
from .subscription_state import Owner

__all__ = ["StandbyOwner", "roll_back", "take_over"]

LOST = "lost while another connection took over"


class StandbyOwner:
    """The owner of a standby subscriber: reports a loss only if the old subscriber lost it too."""

    def __init__(self, owner: Owner, old: Subscriber) -> None:
        self._owner = owner
        self._old = old
        self.displaced = owner.displaced
        self.refused = owner.refused

    def granted(self, channel: str) -> str | None:
        """See `Owner`. An earlier loss is reported later, by the subscriber that delivers next."""
        reason = self._owner.granted(channel)
        if reason is not None:
            self._owner.lost([channel], reason)
        return None

    def lost(self, channels: Sequence[str], reason: str) -> None:
        """See `Owner`."""
        kept = {channel for channel, _ in self._old.state.subscriptions.carried}
        self._owner.lost([channel for channel in channels if channel not in kept], reason)

    def unreachable(self, channels: Sequence[str], error: ConnectError) -> None:
        """See `Owner`. Ignored: the old subscriber continues."""


async def take_over(old: Subscriber, new: Subscriber, owner: Owner, options: BrokerOptions) -> None:
    """Subscribe the standby `new`, and return once `old` can be muted.

    Args:
        new: has a connection and no subscriptions yet.

    Raises:
        ConnectionLost: the new connection was lost, or a subscription was not granted there.
        asyncio.TimeoutError: replies are missing after `subscribe_timeout_seconds`.
    """
    for channel, name in old.state.subscriptions.wanted:
        new.want(channel, name)
    await with_deadline(options.subscribe_timeout_seconds, new.until_settled())
    if _only(old, new):
        raise ConnectionLost("not every subscription was granted again")
    try:
        await old.until_delivered(options.dead_peer_seconds)
    except ConnectionLost:
        old.lose(LOST)
    else:
        owner.lost(_only(old, new), LOST)
    if new.state.connection is None:
        raise ConnectionLost("the new connection was lost")


def roll_back(old: Subscriber, new: Subscriber, owner: Owner) -> None:
    """After a failed takeover, move the channels that only `new` was asked for to `old`."""
    owner.lost(_only(new, old), "lost with a new connection")
    wanted = new.state.subscriptions.wanted
    new.mute()
    for channel, name in wanted:
        old.want(channel, name)


def _only(one: Subscriber, other: Subscriber) -> list[str]:
    """The channels that `one` carries and `other` does not."""
    carried, others = one.state.subscriptions.carried, other.state.subscriptions
    return [channel for channel, name in carried if not others.has(name)]
