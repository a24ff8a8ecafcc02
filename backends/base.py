"""What every broker on servers has in common: names, a publisher, and subscriptions."""

from __future__ import annotations

from collections.abc import Sequence

from ..broker import Limits
from ..url import BrokerURL
from .names import server_name
from .pipeline import NotSent, OutcomeUnknown
from .publisher import Publisher, raise_for_outcomes
from .subscriptions import Subscriptions

__all__ = ["ServerBroker"]


class ServerBroker:
    """The shared part of a broker; a subclass sets `_publisher` and `_subscriptions`."""

    _publisher: Publisher
    _subscriptions: Subscriptions

    def __init__(self, url: BrokerURL) -> None:
        self.url = url
        self.limits = Limits()
        self._prefix = url.options.prefix.encode()

    def _name(self, channel: str) -> bytes:
        return server_name(self._prefix, channel)

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

    async def subscribe(self, channels: Sequence[str]) -> None:
        """See `Broker.subscribe`."""
        await self._subscriptions.subscribe(channels)

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """See `Broker.unsubscribe`."""
        self._subscriptions.unsubscribe(channels)
