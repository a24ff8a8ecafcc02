"""The interface of a connection for its session.

`connection/protocol_client.py` implements it. The rooms below the connection do not import it.
"""

from __future__ import annotations

from typing import Any, Protocol

from .requests import Handlers
from .subscriptions import ChannelsOwner
from .tokens import ChannelToken, Identity

__all__ = ["SessionOwner"]


class SessionOwner(ChannelsOwner, Handlers, Protocol):
    """The connection, as its session knows it."""

    @property
    def session_name(self) -> str:
        """The id of the connection, for the client."""

    @property
    def identity(self) -> Identity:
        """The user and session of the client."""

    @property
    def max_message_bytes(self) -> int:
        """The largest frame of the client."""

    @property
    def idle_timeout_seconds(self) -> float | None:
        """The client is closed if no frame comes for this time."""

    async def may_subscribe(self, channel: str, presence: bool) -> bool:
        """Ask the hook of the application. Raises its errors."""

    def is_revoked(self, token: ChannelToken) -> bool:
        """Whether the right in a token was taken back."""

    def heard(self) -> bool:
        """A frame came. False if it exceeds the rate limit, and the connection is closed."""

    def ping(self, payload: bytes) -> None:
        """Send a text frame, unless others wait for the client."""

    def pong(self, payload: bytes) -> None:
        """Send a text frame, unless the client reads too slowly."""

    async def send(self, payload: bytes) -> None:
        """Send a text frame. Returns when the server has accepted it."""

    async def send_broadcast(self, channel: str, data: Any) -> None:
        """Send data as the broadcast that a hook of the application handles."""

    def broken(self) -> None:
        """Close the connection, because a frame is not one of the protocol."""
