"""The presence of the channels of one hub."""

from __future__ import annotations

__all__ = ["HubPresence"]


class HubPresence:
    """The entries of this process, and the members of the channels that it watches."""
