"""The subscriptions at one server by name: wanted or not, and the last command of each.

`SubscriptionSet` computes which commands are missing on the present connection. It writes nothing
and reports nothing; `subscription_state` does.
"""

from __future__ import annotations

import msgspec

from ..watches import is_watch
from .commands import PubSubCommands

__all__ = ["Subscription", "SubscriptionSet"]


class Subscription(msgspec.Struct, gc=False, eq=False):
    """One channel at this server, and its state on the present connection.

    Attributes:
        sent: the last command written for it, or None.
        unanswered: the number of its commands without an answer.
    """

    channel: str
    name: bytes
    wanted: bool = True
    sent: bytes | None = None
    unanswered: int = 0


class SubscriptionSet:
    """The subscriptions at one server, on the present connection and on later ones.

    Attributes:
        routes: name -> channel of all wanted and granted subscriptions, for delivery.
        watches: the same for watches (`watches.watch_of`).
        changed: names for which a command may be missing.
    """

    def __init__(self, pubsub: PubSubCommands) -> None:
        self._pubsub = pubsub
        self._by_name: dict[bytes, Subscription] = {}
        self.routes: dict[bytes, str] = {}
        self.watches: dict[bytes, str] = {}
        self.changed: dict[bytes, None] = {}

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def get(self, name: bytes) -> Subscription | None:
        return self._by_name.get(name)

    def want(self, channel: str, name: bytes) -> bool:
        """Want a channel; True if the server has granted it already."""
        subscription = self._by_name.get(name)
        if subscription is None:
            self._by_name[name] = Subscription(channel, name)
        else:
            subscription.wanted = True
            if self.is_active(subscription):
                self.add_route(subscription)
                return True
        self.changed[name] = None
        return False

    def unwant(self, name: bytes) -> Subscription | None:
        """Want a name no more: it has no route from now on. Returns its subscription."""
        subscription = self._by_name.get(name)
        if subscription is not None:
            subscription.wanted = False
            self.remove_route(name)
            if subscription.sent is None and not subscription.unanswered:
                self.drop(subscription)
            else:
                self.changed[name] = None
        return subscription

    def drop(self, subscription: Subscription) -> None:
        """Remove a subscription that is neither wanted nor has an unanswered command."""
        self.changed.pop(subscription.name, None)
        if self._by_name.get(subscription.name) is subscription:
            del self._by_name[subscription.name]

    def has(self, name: bytes) -> bool:
        """Whether the name is wanted and granted."""
        subscription = self._by_name.get(name)
        return subscription is not None and self.is_active(subscription)

    def add_route(self, subscription: Subscription) -> None:
        """Deliver what arrives for a subscription."""
        routes = self.watches if is_watch(subscription.channel) else self.routes
        # The key is our own name object, so that a reply's copy of it can be freed.
        routes[subscription.name] = subscription.channel

    def remove_route(self, name: bytes) -> None:
        """Deliver nothing more for a name."""
        self.routes.pop(name, None)
        self.watches.pop(name, None)

    @property
    def delivering(self) -> bool:
        """Whether there is a channel or watch for which something is delivered."""
        return bool(self.routes or self.watches)

    def routed_names(self) -> set[str]:
        """The channels and watches for which something is delivered."""
        return {*self.routes.values(), *self.watches.values()}

    def routed_channels(self) -> set[str]:
        """The channels on which messages are delivered."""
        return set(self.routes.values())

    def clear(self) -> None:
        """Drop all subscriptions without a report."""
        self.routes.clear()
        self.watches.clear()
        self._by_name.clear()
        self.changed.clear()

    def is_active(self, subscription: Subscription) -> bool:
        """Whether a subscription is wanted and granted."""
        return (
            subscription.wanted
            and subscription.sent == self._pubsub.subscribe
            and not subscription.unanswered
        )

    @property
    def wanted(self) -> list[tuple[str, bytes]]:
        """The channels and names that are wanted."""
        return [(s.channel, name) for name, s in self._by_name.items() if s.wanted]

    @property
    def carried(self) -> list[tuple[str, bytes]]:
        """The channels and names that are wanted and granted."""
        return [(s.channel, name) for name, s in self._by_name.items() if self.is_active(s)]

    def first_requested(self) -> bytes | None:
        """The first wanted name whose last command is SUBSCRIBE."""
        requested = (
            name
            for name, subscription in self._by_name.items()
            if subscription.wanted and subscription.sent == self._pubsub.subscribe
        )
        return next(requested, None)

    def begin(self) -> None:
        """There is a new connection: commands may be missing for every name."""
        self.changed.update(dict.fromkeys(self._by_name))

    def end(self) -> None:
        """The connection is lost: forget its commands, and drop the unwanted subscriptions."""
        self.routes.clear()
        self.watches.clear()
        for subscription in list(self._by_name.values()):
            subscription.sent, subscription.unanswered = None, 0
            if not subscription.wanted:
                self.drop(subscription)

    def take_changes(self) -> tuple[list[bytes], list[bytes]]:
        """The names to subscribe to and to unsubscribe from, as if the commands were written."""
        asked: list[bytes] = []
        ended: list[bytes] = []
        for name in self.changed:
            subscription = self._by_name[name]
            command = self._pubsub.subscribe if subscription.wanted else self._pubsub.unsubscribe
            if subscription.sent == command or (
                subscription.sent is None and not subscription.wanted
            ):
                continue
            subscription.sent = command
            subscription.unanswered += 1
            (asked if subscription.wanted else ended).append(name)
        self.changed.clear()
        return asked, ended
