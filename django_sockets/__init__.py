"""Websockets for Django and plain Python, over memory, Valkey or Redis.

Import the socket classes from `django_sockets.sockets` and `django_sockets.broadcaster`. This
module holds everything that works without a websocket.
"""

from .delivery.events import Gap, Message, Presence
from .errors import (
    AuthError,
    BrokerClosed,
    BrokerError,
    CallError,
    ChannelError,
    ConfigurationError,
    ConnectError,
    DjangoSocketsError,
    EncodeError,
    HistoryError,
    NotAllowed,
    PayloadTooLarge,
    PositionError,
    PresenceError,
    PresenceFull,
    PublishError,
    Reject,
    RequestError,
    SubscribeError,
)
from .history import Recovery
from .hub.history.pages import HistoryPage, KeptMessage
from .hub.hub import Hub, open_hub
from .registry import open_broker
from .runtime import local_hubs
from .runtime.shutdown import drain

__all__ = [
    "AuthError",
    "BrokerClosed",
    "BrokerError",
    "CallError",
    "ChannelError",
    "ConfigurationError",
    "ConnectError",
    "DjangoSocketsError",
    "EncodeError",
    "Gap",
    "HistoryError",
    "HistoryPage",
    "Hub",
    "KeptMessage",
    "Message",
    "NotAllowed",
    "PayloadTooLarge",
    "PositionError",
    "Presence",
    "PresenceError",
    "PresenceFull",
    "PublishError",
    "Recovery",
    "Reject",
    "RequestError",
    "SubscribeError",
    "drain",
    "local_hubs",
    "open_broker",
    "open_hub",
]
