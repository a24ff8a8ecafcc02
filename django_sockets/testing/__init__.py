"""Helpers for the tests of applications. Nothing else of the library imports this package."""

from .client import HandshakeRefused, SocketClient, SocketClosed
from .faulty import Faults, FaultyBroker
from .override import override_broker

__all__ = [
    "Faults",
    "FaultyBroker",
    "HandshakeRefused",
    "SocketClient",
    "SocketClosed",
    "override_broker",
]
