"""Orders to take back the right of tagged sockets to some channels, as one process remembers them.

A socket without a session of the client protocol has no rights that could be taken back.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

__all__ = ["Revocation", "Revocations", "read_revocation", "revoke_order"]

REMEMBERED = 1000
"""The newest orders that a process remembers, so that an older token is not accepted again."""


class Revocation(NamedTuple):
    """One order.

    Attributes:
        tags: the sockets with all of these tags.
        channels: the channels.
        at: Unix time in seconds. Tokens that were issued until then are not accepted any more.
    """

    tags: Mapping[str, str]
    channels: Collection[str]
    at: float


class Revocations:
    """The newest orders that a process has received."""

    def __init__(self) -> None:
        self._newest: deque[Revocation] = deque(maxlen=REMEMBERED)

    def add(self, revocation: Revocation) -> bool:
        """Remember an order; False if it is remembered already."""
        if revocation in self._newest:
            return False
        self._newest.append(revocation)
        return True

    def cover(self, tags: Mapping[str, str], channel: str, issued_at: float) -> bool:
        """Whether a right to a channel that was given to a socket at a time was taken back."""
        return any(
            channel in one.channels
            and issued_at <= one.at
            and all(tags.get(name) == text for name, text in one.tags.items())
            for one in self._newest
        )


def revoke_order(revocation: Revocation) -> bytes:
    """The order as a message on the control channel."""
    order = {
        "tags": dict(revocation.tags),
        "channels": list(revocation.channels),
        "at": revocation.at,
    }
    return json.dumps({"revoke": order}).encode()


def read_revocation(order: Any) -> Revocation:
    """The order in a message.

    Raises:
        ValueError, TypeError, KeyError: it is not one.
    """
    tags, channels, at = order["tags"], order["channels"], order["at"]
    texts = [*tags.values(), *channels]
    if not tags or not channels or not all(isinstance(text, str) for text in texts):
        raise ValueError("an order to revoke needs at least one tag and one channel, all texts")
    return Revocation(tags, frozenset(channels), float(at))
