"""The interface between a broker and the code that sends its messages to the servers.

`PipelinePublisher` implements it for one server, `cluster.router` for a cluster, and
`glide.publisher` with another driver.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypeAlias

from ...errors import PublishError
from ...log import LogThrottle
from ...url import BrokerURL
from .commands import PubSubCommands
from .parser import ReplyError
from .pipeline import OutcomeUnknown, PartlyRefused, Pipeline

logger = logging.getLogger("django_sockets")

__all__ = [
    "Outcome",
    "PipelinePublisher",
    "PublishCall",
    "Publisher",
    "RefusalLog",
    "raise_for_outcomes",
]

Outcome: TypeAlias = object
"""The outcome of one message. NotSent: certainly not sent. OutcomeUnknown: written, but without a
reply. ReplyError: refused by the server. Anything else, such as a reply: accepted.
"""


class Publisher(Protocol):
    """Publishes messages in the order of the calls."""

    def send(self, messages: Sequence[tuple[bytes, bytes]]) -> Awaitable[Sequence[Outcome]]:
        """Publish 1..n messages (server-side name, payload); await the outcome of each.

        The call itself puts the messages in order, before anything is awaited.

        Raises:
            BrokerClosed: after `aclose`.
            NotSent, OutcomeUnknown: on await; the outcome of every message.
        """

    def reset(self, reason: str) -> None:
        """Open new connections for later messages: the present ones lead to a wrong server."""

    async def aclose(self) -> None:
        """Close; messages without a reply end as unknown."""


class PublishCall:
    """One call of `Publisher.send`, until each of its messages has an outcome.

    Args:
        count: the number of messages.
        deadline: the time of the event loop at which waiting messages are given up.

    Attributes:
        future: gets the outcomes, in the order of the messages.
    """

    __slots__ = ("_missing", "_outcomes", "deadline", "future")

    def __init__(self, count: int, deadline: float) -> None:
        self.future: asyncio.Future[Sequence[Any]] = asyncio.get_running_loop().create_future()
        self.deadline = deadline
        self._missing = count
        self._outcomes: list[Outcome] = [None] * count

    def settle(self, index: int, outcome: Outcome) -> None:
        """Set the outcome of one message."""
        self._outcomes[index] = outcome
        self._missing -= 1
        if not self._missing and not self.future.done():
            self.future.set_result(self._outcomes)


class PipelinePublisher:
    """Publishes over one `Pipeline`, whose owner closes it."""

    def __init__(self, pipeline: Pipeline, pubsub: PubSubCommands) -> None:
        self._pipeline = pipeline
        self._command = pubsub.publish

    def send(self, messages: Sequence[tuple[bytes, bytes]]) -> Awaitable[Sequence[Outcome]]:
        """See `Publisher`."""
        command = self._command
        return self._pipeline.submit([(command, name, payload) for name, payload in messages])

    def reset(self, reason: str) -> None:
        """See `Publisher`."""
        self._pipeline.reset(reason)

    async def aclose(self) -> None:
        """See `Publisher`."""


class RefusalLog:
    """Logs the publishes that the server refuses, once per interval. For any thread."""

    def __init__(self, url: BrokerURL) -> None:
        self._url = url
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)

    def log(self, error: ReplyError) -> None:
        """Log a refusal. The first word of it, such as NOPERM, is its kind."""
        text, extra = "%s: the server refused a publish: %s", {"broker": self._url, "reason": error}
        key = str(error).partition(" ")[0]
        self._throttle.log(logging.WARNING, key, text, self._url, error, extra=extra)


def raise_for_outcomes(
    url: BrokerURL, channels: Sequence[str], outcomes: Sequence[Outcome], refusals: RefusalLog
) -> None:
    """Return if every message was accepted.

    A refusal of the server is logged. The connection has logged the other failures.

    Args:
        refusals: of the caller.

    Raises:
        PublishError: naming the channels that failed and those whose outcome is unknown.
    """
    failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if not failures:
        return
    failed, unknown, problems = [], [], []
    for channel, outcome in zip(channels, outcomes, strict=True):
        if not isinstance(outcome, Exception):
            continue
        problem = str(outcome)
        if isinstance(outcome, OutcomeUnknown):
            unknown.append(channel)
            if isinstance(outcome, PartlyRefused):
                refusals.log(outcome.error)
        else:
            failed.append(channel)
            if isinstance(outcome, ReplyError):
                problem = f"the server refused it: {outcome}"
                refusals.log(outcome)
        if problem not in problems:
            problems.append(problem)
    causes = (outcome.__cause__ for outcome in failures)
    cause = next((cause for cause in causes if cause is not None), None)
    problem = "; ".join(problems[:3])
    raise PublishError(url, problem, failed=failed, unknown=unknown) from cause
