"""The seam between a broker and what carries its messages to the servers.

Our own connections (`PipelinePublisher`, and `router` for a cluster) stand behind it, or another
driver.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol, TypeAlias

from ...errors import PublishError
from ...url import BrokerURL
from .commands import PubSubCommands
from .connection import ReplyError
from .pipeline import OutcomeUnknown, Pipeline

__all__ = ["Outcome", "PipelinePublisher", "Publisher", "raise_for_outcomes"]

Outcome: TypeAlias = object
"""What became of one message: NotSent, certainly nothing; OutcomeUnknown, it was written and no
reply came; ReplyError, the server refused it; anything else, such as its reply: it was accepted."""


class Publisher(Protocol):
    """Publishes messages in the order of the calls."""

    def send(self, messages: Sequence[tuple[bytes, bytes]]) -> Awaitable[Sequence[Outcome]]:
        """Publish 1..n (server-side name, payload), and await what became of each.

        The messages take their place in the order when this is called, before anything is awaited.

        Raises:
            BrokerClosed: after `aclose`.
            NotSent, OutcomeUnknown: when it is awaited; that is the outcome of each.
        """

    def reset(self, reason: str) -> None:
        """Connect anew for what comes next: the present connections lead to a wrong server."""

    async def aclose(self) -> None:
        """Close; what waits for a reply ends as unknown."""


class PipelinePublisher:
    """Publishes over one `Pipeline`, which stays its owner's to close."""

    def __init__(self, pipeline: Pipeline, pubsub: PubSubCommands) -> None:
        self._pipeline = pipeline
        self._verb = pubsub.publish

    def send(self, messages: Sequence[tuple[bytes, bytes]]) -> Awaitable[Sequence[Outcome]]:
        """See `Publisher`."""
        verb = self._verb
        return self._pipeline.submit([(verb, name, payload) for name, payload in messages])

    def reset(self, reason: str) -> None:
        """See `Publisher`."""
        self._pipeline.reset(reason)

    async def aclose(self) -> None:
        """See `Publisher`."""


def raise_for_outcomes(
    url: BrokerURL, channels: Sequence[str], outcomes: Sequence[Outcome]
) -> None:
    """Nothing where every message was accepted.

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
        else:
            failed.append(channel)
            if isinstance(outcome, ReplyError):
                problem = f"the server refused it: {outcome}"
        if problem not in problems:
            problems.append(problem)
    causes = (outcome.__cause__ for outcome in failures)
    cause = next((cause for cause in causes if cause is not None), None)
    problem = "; ".join(problems[:3])
    raise PublishError(url, problem, failed=failed, unknown=unknown) from cause
