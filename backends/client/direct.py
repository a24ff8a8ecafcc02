"""Publishing on the calling thread, over a connection that the event loop has lent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...url import BrokerURL
from .commands import PubSubCommands
from .connection import ConnectionLost
from .parser import pack
from .pipeline import OutcomeUnknown, Pipeline
from .publisher import Outcome, RefusalLog, raise_for_outcomes

__all__ = ["DirectPublisher"]


class DirectPublisher:
    """Implements `broker.ThreadPublisher` for one server.

    Args:
        server_name: makes the name on the server from the name of a channel.
    """

    def __init__(
        self,
        url: BrokerURL,
        pipeline: Pipeline,
        pubsub: PubSubCommands,
        server_name: Callable[[str], bytes],
    ) -> None:
        self._url = url
        self._refusals = RefusalLog(url)
        self._lending = pipeline.lending
        self._command = pubsub.publish
        self._server_name = server_name

    @property
    def lent(self) -> bool:
        """See `ThreadPublisher`."""
        loan = self._lending.loan
        return loan is not None and not loan.recalled

    @property
    def busy_here(self) -> bool:
        """See `ThreadPublisher`."""
        loan = self._lending.loan
        return loan is not None and loan.held_here

    def lend_soon(self) -> None:
        """See `ThreadPublisher`."""
        self._lending.wanted = True

    def take_back(self) -> None:
        """See `ThreadPublisher`."""
        self._lending.recall()

    def publish_on_thread(
        self,
        channels: Sequence[str],
        payload: bytes,
        headers: Callable[[], Sequence[bytes]],
        timeout_seconds: float,
    ) -> bool:
        """See `ThreadPublisher`."""
        loan = self._lending.loan
        if loan is None:
            return False

        def commands() -> tuple[bytes, int]:
            packed = [
                pack((self._command, self._server_name(channel), header + payload))
                for channel, header in zip(channels, headers(), strict=True)
            ]
            return packed[0] if len(packed) == 1 else b"".join(packed), len(packed)

        outcomes: Sequence[Outcome] | None
        try:
            outcomes = loan.exchange(commands, timeout_seconds)
        except ConnectionLost as exc:
            unknown = OutcomeUnknown(loan.problem or str(exc))
            unknown.__cause__ = exc.__cause__
            outcomes = [unknown] * len(channels)
        if outcomes is None:
            return False
        raise_for_outcomes(self._url, channels, outcomes, self._refusals)
        return True
