"""Websockets for Django and plain Python, on the cache your cloud gives you.

The socket classes are imported from `django_sockets.sockets` and `django_sockets.broadcaster`; this
module holds what works without a websocket.
"""

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
    NotAllowed,
    PayloadTooLarge,
    PublishError,
    Reject,
    SubscribeError,
)
from .events import Gap, Message
from .hub import Hub, open_hub
from .registry import open_broker
from .runtime import local_hubs
from .shutdown import drain

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
    "Hub",
    "Message",
    "NotAllowed",
    "PayloadTooLarge",
    "PublishError",
    "Reject",
    "SubscribeError",
    "drain",
    "local_hubs",
    "open_broker",
    "open_hub",
]
