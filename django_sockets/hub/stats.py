"""The counters of one hub."""

from __future__ import annotations

import dataclasses

__all__ = ["Counters"]


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

    def as_dict(self) -> dict[str, int]:
        """Every counter by its name."""
        return dataclasses.asdict(self)
