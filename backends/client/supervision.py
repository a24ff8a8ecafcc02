"""Long-lived tasks go on after an unexpected exception: it is logged and counted.

A task that lives as long as its broker handles what servers send and what subscribers do, and
either may be something that no code expects. Expected errors (a lost link, a server that cannot be
reached) are handled where they occur; this module is for all others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ...log import LogThrottle
from ...url import BrokerURL
from .deadlines import Backoff

__all__ = ["Supervisor"]

logger = logging.getLogger("django_sockets")


class Supervisor:
    """Keeps the tasks of one object running.

    Args:
        url: for its log interval, and for the log.

    Attributes:
        failures: unexpected exceptions so far.
    """

    def __init__(self, url: BrokerURL) -> None:
        self._url = url
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self.failures = 0

    def failed(self, what: str, error: Exception) -> None:
        """Log and count an exception that ended a step of the work `what`."""
        self.failures += 1
        self._throttle.log(
            logging.ERROR,
            what,
            "%s: %s failed unexpectedly (failure %d) and begins again",
            self._url,
            what,
            self.failures,
            exc_info=error,
        )

    async def keep(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Await `work()`, and again after each exception, with the pauses of `Backoff`.

        Returns when `work()` returns. The pauses begin anew once it has run for longer than the
        greatest of them.
        """
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        while True:
            began = loop.time()
            try:
                await work()
            except Exception as exc:
                self.failed(what, exc)
            else:
                return
            if loop.time() - began > Backoff.CAP_SECONDS:
                backoff.reset()
            await backoff.pause()
