"""The broker, clock, limits, tasks and log that all parts of the presence of one hub use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ...broker import Broker, SupportsPresence
from ...errors import BrokerError
from ...log import LogThrottle, whereabouts
from ...overrides import Clock, Timer, clock_of
from ...url import BrokerURL
from ..stats import Counters

__all__ = ["Context", "PresenceBroker"]

logger = logging.getLogger("django_sockets")

RETRY_SECONDS = 1.0
"""Time after which a command that has failed is tried again."""


class PresenceBroker(Broker, SupportsPresence, Protocol):
    """A broker with presence."""


class Context:
    """The surroundings of the presence of one hub.

    Attributes:
        broker: keeps the entries and the leases.
        clock: tells the time.
        counters: of the hub.
        url: of the broker, with the options.
        closed: no new task or timer may begin.
    """

    def __init__(
        self,
        broker: PresenceBroker,
        url: BrokerURL,
        counters: Counters,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.broker = broker
        self.url = url
        self.counters = counters
        self.clock: Clock = clock_of(loop)
        self.closed = False
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)

    def spawn(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        """Run a coroutine as a task of the hub. Its errors are logged.

        Args:
            what: the activity, for the log.
        """
        task = self._loop.create_task(
            self._guarded(work, what), name=f"django_sockets presence: {what}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A task that is cancelled before it begins would leave a coroutine that nobody has awaited.
        task.add_done_callback(lambda _: work.close())
        return task

    async def _guarded(self, work: Coroutine[Any, Any, None], what: str) -> None:
        try:
            await work
        except Exception as exc:
            self.failed(what, exc)

    def failed(self, what: str, exc: Exception) -> None:
        """Log that the server did not do something, or an unexpected error with its traceback."""
        if self.closed:
            return
        text = "%s: presence: cannot %s: %s"
        if isinstance(exc, BrokerError):
            problem = exc.problem
            extra = {"broker": self.url, "reason": problem}
            self._throttle.log(logging.WARNING, what, text, self.url, what, problem, extra=extra)
        else:
            key = f"{what} {whereabouts(exc)}"
            self._throttle.log(
                logging.ERROR,
                key,
                text,
                self.url,
                what,
                exc,
                exc_info=exc,
                extra={"broker": self.url, "reason": exc},
            )

    def after(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` after some time, unless the hub is closed then."""
        return self.clock.call_at(
            self.clock.time() + seconds, lambda: None if self.closed else callback()
        )

    def new_future(self) -> asyncio.Future[None]:
        """A future of the event loop of the hub."""
        return self._loop.create_future()

    async def end_tasks(self) -> None:
        """Cancel the tasks and wait for their end."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
