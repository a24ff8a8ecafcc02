"""The local subscriptions of one hub: which subscriber is on which channel.

The hub subscribes and unsubscribes at the broker. This module records the result.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence, Set

from ..delivery.channel import Channel, Subscriber
from ..delivery.send_queue import SendQueue
from ..delivery.sequence import PublisherBudget

__all__ = ["LocalSubscriptions"]

_NO_CHANNELS: dict[str, tuple[object, ...]] = {}


class LocalSubscriptions:
    """The channels of one hub, and the channels of each subscriber.

    Args:
        publishers_remembered: the most publishers that one channel remembers.

    Attributes:
        channels: the subscribed channels by name. Read only.
    """

    def __init__(self, publishers_remembered: int) -> None:
        self.channels: dict[str, Channel] = {}
        self._budget = PublisherBudget(publishers_remembered, self.channels)
        # Subscriber -> channel -> the calls of `request` that wait for the acknowledgement of the
        # channel. An empty tuple means that it is acknowledged. The garbage collector skips a dict
        # that holds only str and empty tuples.
        self._channels_of: dict[Subscriber, dict[str, tuple[object, ...]]] = {}

    @property
    def subscribers(self) -> Set[Subscriber]:
        """The subscribers of all channels."""
        return self._channels_of.keys()

    def opened(self, name: str) -> Channel:
        """The channel with this name, which is made if there is none."""
        channel = self.channels.get(name)
        if channel is None:
            channel = self.channels[name] = Channel(self._budget)
        return channel

    def channels_of(self, subscriber: Subscriber) -> Set[str]:
        """A live view of the channels of a subscriber."""
        return self._channels_of.get(subscriber, _NO_CHANNELS).keys()

    def request(
        self,
        subscriber: Subscriber,
        names: Sequence[str],
        send_queue: SendQueue | None,
        joining: Container[str] = (),
    ) -> object:
        """Add a subscriber to channels before the server has acknowledged them.

        Args:
            joining: channels to which the history adds the subscriber later.

        Returns:
            An object that identifies this call, for `acknowledge` and `withdraw`.
        """
        owned = self._channels_of.setdefault(subscriber, {})
        call = object()
        for name in names:
            if name in owned:
                if owned[name]:
                    owned[name] += (call,)
                continue
            channel = self.channels.get(name) or self.opened(name)
            if name not in joining:
                channel.add(subscriber, send_queue)
            owned[name] = (call,)
        return call

    def acknowledge(
        self, subscriber: Subscriber, names: Sequence[str], call: object, now: float
    ) -> None:
        """Record that the server has acknowledged the channels of a call."""
        owned = self._channels_of.get(subscriber, _NO_CHANNELS)
        for name in names:
            if call in owned.get(name, ()):
                owned[name] = ()
                self.channels[name].acknowledged(now)

    def withdraw(self, subscriber: Subscriber, names: Sequence[str], call: object) -> list[str]:
        """Take back a call that has failed.

        Returns:
            The channels to remove. Channels that another call of the subscriber has got, or still
            waits for, are not among them.
        """
        owned = self._channels_of.get(subscriber, _NO_CHANNELS)
        gone = []
        for name in names:
            calls = owned.get(name, ())
            if call in calls:
                owned[name] = tuple(other for other in calls if other is not call)
                if not owned[name]:
                    gone.append(name)
        return gone

    def remove(self, subscriber: Subscriber, names: Iterable[str] | None) -> list[str]:
        """Remove a subscriber from some channels, or from all.

        Returns:
            The channels that have no subscriber any more.
        """
        owned = self._channels_of.get(subscriber, {})
        gone = list(owned) if names is None else [name for name in names if name in owned]
        empty = []
        for name in gone:
            owned.pop(name, None)
            channel = self.channels[name]
            if channel.joining and not channel.has(subscriber):
                channel.joining -= 1
            else:
                channel.remove(subscriber)
            if channel.empty:
                del self.channels[name]
                empty.append(name)
        if not owned:
            self._channels_of.pop(subscriber, None)
        return empty
