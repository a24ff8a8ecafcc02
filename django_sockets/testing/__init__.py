"""Helpers for the tests of applications. The rest of the library does not import this package."""

from .capture import Broadcast, CapturedBroadcasts, capture_broadcasts
from .client import HandshakeRefused, SocketClient, SocketClosed
from .clock import MovedClock, moved_clock
from .faulty import Faults, FaultyBroker
from .live import LiveSocketServer
from .override import override_broker
from .sync_client import SyncSocketClient

__all__ = [
    "Broadcast",
    "CapturedBroadcasts",
    "Faults",
    "FaultyBroker",
    "HandshakeRefused",
    "LiveSocketServer",
    "MovedClock",
    "SocketClient",
    "SocketClosed",
    "SyncSocketClient",
    "capture_broadcasts",
    "moved_clock",
    "override_broker",
]
