"""The choice of the protocol among the subprotocols that a client offers."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["PREFIX", "VERSION", "chosen"]

PREFIX = "django-sockets.v"
VERSION = 1
"""The newest version that the server speaks. It speaks all versions from 1 on."""


def chosen(offered: Iterable[str]) -> str | None:
    """The offered subprotocol with the highest version that the server knows, or None."""
    known = {f"{PREFIX}{version}": version for version in range(1, VERSION + 1)}
    return max((name for name in offered if name in known), key=known.__getitem__, default=None)
