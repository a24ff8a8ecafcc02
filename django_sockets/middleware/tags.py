"""Tags: the names and values by which `close_sockets` finds the sockets of a session or token."""

from __future__ import annotations

import hashlib

__all__ = ["TAGS", "digest"]

TAGS = "django_sockets.tags"
"""Key of the ASGI scope under which a middleware stores its tags."""


def digest(secret: str) -> str:
    """The value of a tag for a session key or token; the secret cannot be computed from it.

    It is 128 bits of SHA-256: enough, because session keys and tokens are long random strings.
    """
    return hashlib.sha256(f"django_sockets:{secret}".encode()).hexdigest()[:32]
