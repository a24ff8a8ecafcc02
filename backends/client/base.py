"""The common part of all brokers on servers: channel names, a publisher and subscriptions."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from functools import lru_cache, partial
from typing import Any

from ...broker import Limits, ThreadPublisher
from ...url import BrokerURL
from .commands import server_name
from .pipeline import NotSent, OutcomeUnknown
from .publisher import Publisher, raise_for_outcomes
from .queues import QueueCalls
from .subscriptions import Subscriptions

__all__ = ["ServerBroker"]

NAMES_KEPT = 4096
"""Size of the cache of server-side names."""


class ServerBroker(QueueCalls):
    """The common part of a broker; a subclass sets `_publisher`, `_subscriptions`, `_scripts`.

    Attributes:
        thread_publisher: publishes on the calling thread; None if the broker cannot.
    """

    thread_publisher: ThreadPublisher | None = None
    _publisher: Publisher
    _subscriptions: Subscriptions

    def __init__(self, url: BrokerURL) -> None:
        self.url = url
        self.limits = Limits()
        prefix = url.options.prefix.encode()
        # A cache of one argument, because several would build a tuple for each look-up.
        self._name = lru_cache(maxsize=NAMES_KEPT)(partial(server_name, prefix))

    async def publish(
        self, channels: Sequence[str], payload: bytes, headers: Sequence[bytes] = ()
    ) -> None:
        """See `Broker.publish`."""
        try:
            outcomes = await self._publisher.send(
                [
                    (self._name(channel), headers[index] + payload if headers else payload)
                    for index, channel in enumerate(channels)
                ]
            )
        except (NotSent, OutcomeUnknown) as exc:
            outcomes = [exc] * len(channels)
        raise_for_outcomes(self.url, channels, outcomes)

    def subscribe(self, channels: Sequence[str]) -> Coroutine[Any, Any, None]:
        """See `Broker.subscribe`."""
        return self._subscriptions.subscribe(channels)

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """See `Broker.unsubscribe`."""
        self._subscriptions.unsubscribe(channels)
