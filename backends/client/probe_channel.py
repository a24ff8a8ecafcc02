"""The delivery probe's channel as one of the subscriptions at a server."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ...url import BrokerURL
from .identity import RefusalBackoff
from .parser import ReplyError

__all__ = ["PROBE_RETRY_SECONDS", "ProbeChannel"]

logger = logging.getLogger("django_sockets")

PROBE_RETRY_SECONDS = 0.1
"""Pause before the probe's channel is requested again, after the server has refused it."""


class ProbeChannel:
    """Chooses the name of the probe's channel, and when to subscribe to it.

    Args:
        name_like: returns a new name on the server that serves a given name; None for no probe.

    Attributes:
        name: the present name while any other channel is subscribed, else None. Each subscription
            has another name: a message that was published before it may be lost.
    """

    def __init__(self, url: BrokerURL, name_like: Callable[[bytes], bytes] | None) -> None:
        self._url = url
        self._name_like = name_like
        self._backoff = RefusalBackoff()
        self._warned = False
        self.name: bytes | None = None
        self._granted: bytes | None = None

    @property
    def is_granted(self) -> bool:
        """Whether the server has acknowledged the subscription to the present name."""
        return self.name is not None and self.name == self._granted

    def update(self, like: bytes | None, asked: list[bytes], ended: list[bytes]) -> None:
        """Add the probe's name to `asked` or `ended`, the names to subscribe and unsubscribe.

        Args:
            like: the name of any other subscribed channel; None if there is none.
        """
        if like is not None and self.name is None and self._name_like is not None:
            if self._backoff.over:
                self.name = self._name_like(like)
                asked.append(self.name)
        elif like is None and self.name is not None:
            ended.append(self.name)
            self.name = None

    def granted(self) -> None:
        """The server acknowledged the subscription to the present name."""
        self._granted = self.name
        self._backoff.succeeded()
        self._warned = False

    def refused(self, error: ReplyError) -> float:
        """The server refused the channel; returns the seconds until the next attempt.

        The attempts never end, because the ACL may be corrected.
        """
        self.name = None
        seconds = self._backoff.refused(error) + PROBE_RETRY_SECONDS
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s: the server refuses the delivery probe's channel (%s); allow the pattern %r in "
                "the user's ACL, or a server that stops delivering goes unnoticed",
                self._url,
                error,
                f"{self._url.options.prefix}:*",
                extra={"broker": self._url, "reason": error},
            )
        return seconds
