"""Signed channels: the token that admits one user or session to one channel for some time.

`django_sockets.signed_channels` makes tokens for applications. Sessions of the protocol read them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..optional_django import signed, unsigned

__all__ = ["MAX_TOKEN_CHARACTERS", "ChannelToken", "Identity", "read_token", "write_token"]

SALT = "django_sockets.signed_channels"
MAX_TOKEN_CHARACTERS = 4096


class Identity(NamedTuple):
    """The user and the session of a client, as texts; None for none.

    Attributes:
        user: the primary key of the user.
        session: the digest of the session key; see `middleware.tags`.
    """

    user: str | None
    session: str | None


class ChannelToken(NamedTuple):
    """The content of a token.

    Attributes:
        channel: the only channel that it admits to.
        expires_at: Unix time in seconds.
        issued_at: Unix time in seconds.
        user: the only user that may use it; None for no such bound.
        session: the only session that may use it; None for no such bound.
        presence: whether it allows presence.
        since: the position of the channel when the state was read, or None.
    """

    channel: str
    expires_at: float
    issued_at: float
    user: str | None = None
    session: str | None = None
    presence: bool = False
    since: str | None = None

    def is_for(self, identity: Identity) -> bool:
        """Whether this client may use it."""
        return self.user in (None, identity.user) and self.session in (None, identity.session)

    @property
    def seconds_left(self) -> float:
        """The seconds until it expires; below 0 afterwards."""
        return self.expires_at - time.time()


def write_token(token: ChannelToken) -> str:
    """Sign a token.

    Raises:
        ConfigurationError: Django is not configured.
    """
    content: dict[str, Any] = {
        "c": token.channel,
        "e": round(token.expires_at, 3),
        "i": round(token.issued_at, 3),
    }
    optional = {"u": token.user, "s": token.session, "p": token.presence, "o": token.since}
    content.update({key: value for key, value in optional.items() if value})
    # With an expiry of its own, so that the time stamp of the signature is not needed.
    return signed(content, SALT)


def read_token(text: object) -> ChannelToken | None:
    """The content of a token, which may have expired; None if nobody signed the text."""
    if not isinstance(text, str) or not 0 < len(text) <= MAX_TOKEN_CHARACTERS:
        return None
    content = unsigned(text, SALT)
    if not isinstance(content, Mapping):
        return None
    try:
        return ChannelToken(
            content["c"],
            content["e"],
            content["i"],
            content.get("u"),
            content.get("s"),
            bool(content.get("p")),
            content.get("o"),
        )
    except KeyError:
        return None
