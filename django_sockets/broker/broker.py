"""The methods of every broker, and its limits. The docstring of the package is their contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from ..url import BrokerURL

__all__ = ["Broker", "Limits"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of one broker. A smaller option takes precedence.

    Attributes:
        max_payload_bytes: size of one message with its header.
        max_channel_bytes: size of one channel name in UTF-8.
    """

    max_payload_bytes: int = 512 * 1024 * 1024
    max_channel_bytes: int = 255


class Broker(Protocol):
    """A backend. `open_broker` makes it from a URL. The package's docstring is its contract."""

    url: BrokerURL
    limits: Limits

    async def publish(
        self, channels: Sequence[str], payload: bytes, headers: Sequence[bytes] = ()
    ) -> None:
        """Publish one payload to 1..n different channels.

        Args:
            channels: valid names (`check_channel`) without repetitions, or the control channel of
                the hub, whose name of 8 bytes begins with U+0001.
            payload: at most `limits.max_payload_bytes` with its header.
            headers: one for each channel, to be put before the payload; empty for no headers.

        Raises:
            PublishError: for some channels, the server did not accept the payload, or it is unknown
                whether it did.
            BrokerClosed: after `aclose`.
        """

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe to 1..n channels. Returns when the server has acknowledged all of them.

        After a cancelled call, the channels that it requested first are not subscribed to.

        Raises:
            SubscribeError: not acknowledged within `subscribe_timeout_seconds`, or refused.
            BrokerClosed: after `aclose`.
        """

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """Unsubscribe. Nothing is delivered on these channels after the call began."""

    async def aclose(self) -> None:
        """Close the broker. Idempotent. Calls that wait for the server raise an error."""
