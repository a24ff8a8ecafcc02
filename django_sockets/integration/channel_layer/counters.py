"""The counters of one channel layer."""

from __future__ import annotations

import dataclasses
import threading

__all__ = ["LayerCounters"]


@dataclasses.dataclass(slots=True)
class LayerCounters:
    """Events counted since the layer was made. `ChannelLayer.stats` reports them by these names.

    An endpoint counts on its event loop, in an object of its own, without a lock. `add` may be
    called on any thread.
    """

    sent: int = 0
    """Messages sent to channels."""
    group_sent: int = 0
    """Messages sent to groups, one for each `group_send`."""
    delivered: int = 0
    """Messages put into channels of this process, one for each channel."""
    received: int = 0
    """Messages returned by `receive`."""
    channel_full: int = 0
    """Sends that raised ChannelFull."""
    dropped_full: int = 0
    """Received messages that were dropped because their channel was at its capacity."""
    dropped_expired: int = 0
    """Messages that were dropped because nobody received them in time."""
    dropped_unreadable: int = 0
    """Messages that were dropped because of other keys or another serializer."""
    gaps: int = 0
    """Gaps, one for each channel that may have missed messages."""
    ended: int = 0
    """Process-local channels that ended because nobody received from them."""
    queue_errors: int = 0
    """Calls to queues of normal channels that failed. They are made again."""
    queue_unknown: int = 0
    """Calls that took a message from a queue and had no reply: each may have lost one message."""
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def add(self, counter: str, count: int = 1) -> None:
        """Add to a counter by its name, on any thread."""
        with self._lock:
            setattr(self, counter, getattr(self, counter) + count)

    def merge(self, other: LayerCounters) -> None:
        """Take over the counts of another object, which is zero afterwards."""
        for name, count in other.as_dict().items():
            self.add(name, count)
            setattr(other, name, 0)

    def as_dict(self) -> dict[str, int]:
        """Every counter by its name."""
        fields = dataclasses.fields(self)
        return {field.name: getattr(self, field.name) for field in fields if field.name != "_lock"}
