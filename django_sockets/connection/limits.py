"""The rate limit of a client, and checks of the options of a socket class.

Of this package, the module imports only `errors`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import ConfigurationError

__all__ = ["LIMITS", "TokenBucket", "check_limits", "check_list", "check_subprotocol"]


class TokenBucket:
    """Allows `per_second` events on average, and at most `burst` at once.

    Args:
        now: the present time in seconds. The bucket is full at the beginning.
    """

    __slots__ = ("_at", "_burst", "_per_second", "_tokens")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> bool:
        """Take a token; False if there is none."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


LIMITS = {
    "outbox_messages": False,
    "outbox_bytes": False,
    "max_message_bytes": False,
    "max_subscriptions": False,
    "handshake_timeout_seconds": True,
    "hold_seconds": True,
    "idle_timeout_seconds": True,
    "rate_limit_per_second": True,
    "rate_limit_burst": True,
}
"""Names of attributes of a socket class, and whether None turns the limit off."""


def check_limits(owner: Any) -> None:
    """Check the limits of a socket class, or of a socket.

    Raises:
        ConfigurationError: a limit is not a number over 0.
    """
    for name, optional in LIMITS.items():
        value = getattr(owner, name)
        if value is None and optional:
            continue
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or math.isnan(value) or value <= 0:
            or_none = ", or None" if optional else ""
            raise ConfigurationError(f"{name} = {value!r}: use a number over 0{or_none}")
    burst = owner.rate_limit_burst
    if burst is not None and burst < 1:
        raise ConfigurationError(f"rate_limit_burst = {burst!r}: use 1 or more")


def check_list(name: str, value: object, example: str | None = None) -> None:
    """Check an option that is a list.

    A text is a sequence of its characters, so `"https://*.example.com"` would contain `"*"`.

    Args:
        example: an entry for the error message; None for the text that was given instead of a list.

    Raises:
        ConfigurationError: the value is a text, bytes, a mapping, or not a collection.
    """
    is_text = isinstance(value, (str, bytes, bytearray))
    if isinstance(value, Collection) and not is_text and not isinstance(value, Mapping):
        return
    entry = repr(value if example is None and isinstance(value, str) else example or "...")
    raise ConfigurationError(f"{name} is {type(value).__name__} and no list: write [{entry[:200]}]")


def check_subprotocol(name: str, value: object) -> None:
    """Check the option `subprotocol`, which is one name and not a list.

    Raises:
        ConfigurationError: the value is neither a text nor None.
    """
    if value is not None and not isinstance(value, str):
        kind = type(value).__name__
        raise ConfigurationError(f"{name} is {kind}, not str: write one name, or None")
