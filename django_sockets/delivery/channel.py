"""The local state of one channel of a hub: its subscribers and the sequences of its publishers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

from .events import Presence
from .message import Delivery, Place
from .send_queue import SendQueue
from .sequence import SequenceTracker

__all__ = [
    "Channel",
    "ChannelHistory",
    "KeptEnvelope",
    "PresenceSubscriber",
    "Recipient",
    "Recipients",
    "Subscriber",
]


class Subscriber(Protocol):
    """A local subscriber. The hub calls both methods on its event loop; they must not wait."""

    def on_delivery(self, delivery: Delivery) -> None:
        """Take one message."""

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        """Messages on these channels may be missing before the next delivery."""


class PresenceSubscriber(Subscriber, Protocol):
    """A subscriber that can watch the members of channels."""

    def on_presence(self, change: Presence) -> None:
        """Take a change of the members of a channel. All subscribers share the object."""


class WithoutQueue:
    """A recipient without a send queue. It gets every message through `on_delivery`.

    It is never `idle`, so that the fan-out treats it like a send queue that is busy.
    """

    __slots__ = ("owner",)

    idle: Literal[False] = False
    write: None = None
    origin: None = None

    def __init__(self, owner: Subscriber) -> None:
        self.owner = owner


Recipient: TypeAlias = SendQueue | WithoutQueue
Recipients: TypeAlias = tuple[Recipient, ...]
"""The subscribers of a channel in the order of their subscriptions, which is the order of delivery.

The tuple is replaced, never changed, when a subscriber comes or goes.
"""


KeptEnvelope: TypeAlias = tuple[
    bytes, int, int, "int | None", int, "bytes | None", bytes, "Place | None"
]
"""The values of `envelope.Envelope`, and the place behind the message if it was kept."""


class ChannelHistory(Protocol):
    """Checks that each kept message of a channel follows on the one before it.

    Attributes:
        incomplete: messages are missing, and nothing has begun to read them.
    """

    incomplete: bool

    def take(self, message: bytes, tracker: SequenceTracker) -> KeptEnvelope | None:
        """Unpack a live message.

        Returns:
            None if the message must be dropped, because the history will provide it.

        Raises:
            NotOurs, NewerVersion: see `envelope.unpack`.
        """


class Channel(SequenceTracker, eq=False):
    """The subscribers of one channel, and the messages received from each publisher.

    It inherits from the tracker, and keeps a single subscriber without a dict, because a hub may
    have one channel for each socket.

    Attributes:
        recipients: the cached result of `current_recipients`; None after a change.
        history: the history of the channel; None if the channel has no history rule.
        joining: number of subscribers that are added once messages for them have been read.
    """

    recipients: Recipients | None = None
    _only: Recipient | None = None
    _several: dict[Subscriber, Recipient] | None = None
    history: ChannelHistory | None = None
    joining: int = 0

    def add(self, subscriber: Subscriber, send_queue: SendQueue | None) -> Recipient:
        """Add a subscriber.

        Args:
            send_queue: the queue to which the fan-out may deliver directly, or None.

        Returns:
            The recipient of the fan-out for the subscriber.
        """
        recipient = send_queue or WithoutQueue(subscriber)
        self.recipients = None
        if self._only is None and not self._several:
            self._only = recipient
            return recipient
        if self._several is None:
            self._several = {}
        if self._only is not None:
            self._several[self._only.owner] = self._only
            self._only = None
        self._several[subscriber] = recipient
        return recipient

    def remove(self, subscriber: Subscriber) -> None:
        """Remove a subscriber."""
        self.recipients = None
        if self._only is not None:
            self._only = None
        elif self._several is not None:
            del self._several[subscriber]

    @property
    def empty(self) -> bool:
        """True if the channel has no subscriber."""
        return self._only is None and not self._several and not self.joining

    @property
    def subscriber_count(self) -> int:
        """The number of subscribers. For any thread."""
        return len(self._several or ()) if self._only is None else 1

    def has(self, subscriber: Subscriber) -> bool:
        """True if this subscriber is on the channel."""
        if self._only is not None:
            return self._only.owner is subscriber
        return self._several is not None and subscriber in self._several

    def current_recipients(self) -> Recipients:
        """The present subscribers."""
        if self.recipients is None:
            only = self._only
            self.recipients = tuple((self._several or {}).values()) if only is None else (only,)
        return self.recipients
