"""The counters of one hub, and the result of `Hub.stats`."""

from __future__ import annotations

import dataclasses
from typing import TypedDict

from ..delivery.events import HISTORY, LATE, MISSED, OVERFLOW, VERSION

__all__ = ["COUNTER_NAMES", "GAP_COUNTERS", "LOST_LINK", "Counters", "HubStats"]

LOST_LINK = "link"
"""Short form of all gap reasons that are a text of the broker: it lost a connection, the server
moved a channel, or an internal error occurred."""

GAP_COUNTERS = {
    MISSED: "gaps_missed",
    LATE: "gaps_late",
    VERSION: "gaps_version",
    HISTORY: "gaps_history",
    OVERFLOW: "gaps_overflow",
    LOST_LINK: "gaps_link",
}
"""Reason of a gap -> the counter of the gaps with this reason."""


@dataclasses.dataclass(slots=True)
class Counters:
    """Events counted since the hub was opened. `Hub.stats()` reports them under the same names.

    The attributes are public: the code that observes an event adds to the counter itself.
    """

    published: int = 0
    """Messages handed to the broker, one for each channel of a publish."""
    publish_errors: int = 0
    """Publishes that raised."""
    delivered: int = 0
    """Messages handed to local subscribers, one for each subscriber."""
    dropped_late: int = 0
    """Received messages that were dropped because they were repeated or late."""
    gaps: int = 0
    """Gaps signalled, one for each subscriber."""
    gaps_missed: int = 0
    """Of these gaps: messages of a publisher are missing before its next message."""
    gaps_late: int = 0
    """Of these gaps: a message arrived after a newer one and was dropped."""
    gaps_version: int = 0
    """Of these gaps: a message has a newer format than this process can read."""
    gaps_history: int = 0
    """Of these gaps: missing messages are not in the history any more."""
    gaps_overflow: int = 0
    """Of these gaps: the client, a hook or the process was too slow."""
    gaps_link: int = 0
    """Of these gaps: the broker lost its connection, or a server moved the channel."""
    poison: int = 0
    """Received payloads that were skipped because no django_sockets process published them."""
    dropped_overflow: int = 0
    """Messages dropped by an overflow policy because a client or a hook was too slow."""
    discarded: int = 0
    """Messages that were queued or being sent when their socket ended or left the channel."""
    closed_overflow: int = 0
    """Sockets closed because their client read too slowly."""
    closed_too_big: int = 0
    """Sockets closed because of a frame over the size limit."""
    closed_rate_limit: int = 0
    """Sockets closed because their client sent too often."""
    closed_idle: int = 0
    """Sockets closed because their client sent nothing for too long."""
    closed_drain: int = 0
    """Sockets closed by `Hub.drain`."""
    handshake_timeouts: int = 0
    """Handshakes that did not finish in time."""
    refused_draining: int = 0
    """Handshakes refused because the hub was draining."""
    presence_joined: int = 0
    """Members that joined channels that the hub watches."""
    presence_left: int = 0
    """Members that left such channels."""
    presence_reaped: int = 0
    """Entries of dead processes that this hub has removed."""
    presence_resyncs: int = 0
    """Times that the members of a watched channel were read again, after a loss."""
    presence_renewals: int = 0
    """Renewals of the lease of this hub."""
    presence_replaced: int = 0
    """Times that the lease had ended, so that the hub took a new process id."""

    def add(self, counter: str, count: int = 1) -> None:
        """Add to the counter of that name.

        Raises:
            AttributeError: there is no counter of that name.
        """
        setattr(self, counter, getattr(self, counter) + count)

    def count_gap(self, reason: str) -> None:
        """Count one gap of one subscriber."""
        self.gaps += 1
        self.add(GAP_COUNTERS.get(reason, "gaps_link"))

    def as_dict(self) -> dict[str, int]:
        """Every counter by its name. For any thread."""
        return {name: getattr(self, name) for name in COUNTER_NAMES}


COUNTER_NAMES = tuple(field.name for field in dataclasses.fields(Counters))
"""The names of all counters."""


class HubStats(TypedDict):
    """The numbers of one hub: `Hub.stats`.

    The counters begin at 0 when the hub is opened, and never fall. `Counters` describes them. The
    other values are present numbers. Units are messages, gaps, publishes, sockets, handshakes,
    members or entries of presence, as described; names that end in `_bytes` are bytes.

    At run time, the dict also has a key `wrapped_send <name>` for each middleware that wraps the
    `send` of a server: the number of sockets that get no prepared frames because of it.
    """

    published: int
    publish_errors: int
    delivered: int
    dropped_late: int
    gaps: int
    gaps_missed: int
    gaps_late: int
    gaps_version: int
    gaps_history: int
    gaps_overflow: int
    gaps_link: int
    poison: int
    dropped_overflow: int
    discarded: int
    closed_overflow: int
    closed_too_big: int
    closed_rate_limit: int
    closed_idle: int
    closed_drain: int
    handshake_timeouts: int
    refused_draining: int
    presence_joined: int
    presence_left: int
    presence_reaped: int
    presence_resyncs: int
    presence_renewals: int
    presence_replaced: int
    sockets: int
    """Open websockets, including those in their handshake."""
    sockets_with_frames: int
    """Open websockets whose server takes prepared frames."""
    event_streams: int
    """Open streams of server-sent events."""
    channels: int
    """Channels that the hub has subscribed to at the broker."""
    subscribers: int
    """Sockets, streams and other readers that are on at least one channel."""
    presence_members: int
    """Entries of presence that this hub holds: one for each connection and channel that is tracked,
    including those in their grace. 0 after `aclose`."""
    presence_watched: int
    """Channels whose members this hub follows: the channels with a subscriber that has asked for
    them, and those on which the hub holds entries. 0 after `aclose`."""
    queued_messages: int
    """Messages and other items that wait for clients that read slowly."""
    queued_bytes: int
    """The size of these messages before compression, in bytes."""
    slow_clients: int
    """Clients that were found to read too slowly and have not caught up yet."""
