"""Long-lived tasks continue after an unexpected exception, which is logged and counted.

Such a task handles the data of servers and calls the code of subscribers, so that any exception is
possible. Expected errors (a lost connection, an unreachable server) are handled where they occur;
this module handles all others.
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
        url: gives the log interval, and appears in the log.

    Attributes:
        failures: the number of unexpected exceptions so far.
    """

    def __init__(self, url: BrokerURL) -> None:
        self._url = url
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self.failures = 0

    def failed(self, what: str, error: Exception) -> None:
        """Log and count an exception that ended a step of the task `what`."""
        self.failures += 1
        self._throttle.log(
            logging.ERROR,
            what,
            "%s: %s failed unexpectedly (failure %d) and starts again",
            self._url,
            what,
            self.failures,
            exc_info=error,
            extra={"broker": self._url, "count": self.failures, "reason": what},
        )

    async def keep(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Await `work()`, and again after each exception, with the pauses of `Backoff`.

        Returns when `work()` returns. The pauses start from zero again after `work()` has run for
        longer than the longest of them.
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
