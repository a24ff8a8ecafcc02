"""Reports the losses of one connection, and how long it was missing, to observers and the log."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from typing import ClassVar

from ...errors import ConnectError
from ...log import LogThrottle
from ...observer import ConnectFailed, LinkLost, LinkRestored, seam
from ...url import Address, BrokerURL

__all__ = ["LinkReports", "PublishingReports", "SentinelReports", "SubscribingReports"]

logger = logging.getLogger("django_sockets")


class LinkReports(ABC):
    """The reports of one connection that is opened again after a loss.

    Attributes:
        link: see `LinkLost.link`.
    """

    __slots__ = ("_lost_at", "_throttle", "_url")

    link: ClassVar[str]

    def __init__(self, url: BrokerURL) -> None:
        self._url = url
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self._lost_at: float | None = None

    def lost(self, reason: str) -> None:
        """A working connection was lost."""
        self.ended(reason)
        self._log_lost(reason)

    def ended(self, reason: str) -> None:
        """A working connection was ended by an error that the caller logs."""
        self._lost_at = time.perf_counter()
        if (observer := seam.observer) is not None:
            observer.link_lost(LinkLost(broker=self._url.scheme, link=self.link, reason=reason))

    def failed(self, error: ConnectError) -> None:
        """A connection could not be made."""
        if (observer := seam.observer) is not None:
            observer.connect_failed(ConnectFailed(broker=self._url.scheme, link=self.link))
        self._log_failed(error)

    def connected(self) -> None:
        """A connection works."""
        if self._lost_at is None:
            return
        seconds, self._lost_at = time.perf_counter() - self._lost_at, None
        if (observer := seam.observer) is not None:
            observer.link_restored(
                LinkRestored(broker=self._url.scheme, link=self.link, seconds=seconds)
            )

    @abstractmethod
    def _log_lost(self, reason: str) -> None:
        """Log a loss."""

    @abstractmethod
    def _log_failed(self, error: ConnectError) -> None:
        """Log a failed attempt."""


class PublishingReports(LinkReports):
    """The connection to which messages are published."""

    __slots__ = ()

    link = "publishing"

    def _log_lost(self, reason: str) -> None:
        text = "%s: publishing connection lost: %s"
        extra = {"broker": self._url, "reason": reason}
        self._throttle.log(logging.WARNING, "lost", text, self._url, reason, extra=extra)

    def _log_failed(self, error: ConnectError) -> None:
        extra = {"broker": self._url, "reason": error}
        self._throttle.log(logging.WARNING, "connect", "cannot publish: %s", error, extra=extra)


class SubscribingReports(LinkReports):
    """The connection on which messages arrive."""

    __slots__ = ()

    link = "subscribing"

    def _log_lost(self, reason: str) -> None:
        text = "%s: subscribing connection lost: %s"
        extra = {"broker": self._url, "reason": reason}
        self._throttle.log(logging.WARNING, "lost", text, self._url, reason, extra=extra)

    def _log_failed(self, error: ConnectError) -> None:
        extra = {"broker": self._url, "reason": error}
        self._throttle.log(logging.WARNING, "connect", "cannot subscribe: %s", error, extra=extra)


class SentinelReports(LinkReports):
    """The connections to one sentinel. Messages flow without them.

    They share one object, so that a sentinel that is down is logged once per interval. It is not
    reported how long a connection was missing: the one for questions is opened with the next one.
    """

    __slots__ = ("_address",)

    link = "sentinel"

    def __init__(self, url: BrokerURL, address: Address) -> None:
        super().__init__(url)
        self._address = address

    def connected(self) -> None:
        """See `LinkReports`."""

    def _log_lost(self, reason: str) -> None:
        text = "%s: connection to the sentinel %s lost: %s"
        extra = {"broker": self._url, "reason": reason}
        self._throttle.log(
            logging.WARNING, "lost", text, self._url, self._address, reason, extra=extra
        )

    def _log_failed(self, error: ConnectError) -> None:
        text = "cannot reach the sentinel %s: %s"
        extra = {"broker": self._url, "reason": error}
        self._throttle.log(logging.WARNING, "connect", text, self._address, error, extra=extra)
