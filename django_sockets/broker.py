"""The Broker protocol: what a backend does, and what it may leave to the hub.

A broker moves opaque `bytes` on named channels. It knows no sockets, no JSON and no Django. The
contract, line by line (`django_sockets.testing.BrokerContract` checks it on any backend):

- One broker belongs to one event loop. It connects when it is first needed, not when it is made.
- `publish` returns when the server has accepted the payload for every channel and raises
  `PublishError` otherwise, naming the channels that failed and those whose outcome is unknown. A
  publish whose outcome is unknown is never repeated. Calls made one after the other reach the
  server in that order, channel by channel. However many callers there are, they share a small
  fixed number of connections.
- `subscribe` returns when the server has acknowledged every channel: what anybody publishes
  after that is delivered. It waits at most `subscribe_timeout_seconds`, then raises
  `SubscribeError` and keeps none of the channels that this call asked for first. Subscribing
  twice, or beside an unsubscribe, ends in the state that the last call asked for.
- Messages go to the sink in the order of the server's stream. At a fault a broker may lose,
  repeat or reorder messages: the hub's envelope turns that into gaps. But when a link that carried
  acknowledged subscriptions is lost, the broker makes them again by itself and then calls
  `sink.lost` with exactly those channels, after the last message before the hole and before the
  first one after it.
- A dead peer that does not close is noticed within `dead_peer_seconds`.
- No exception of a driver leaves a broker; no message, log line or repr contains a secret.
- `aclose` may be called twice; it leaves no task, thread, socket or subscription behind.

Only `errors` stands below this module. The hub and the backends import it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from .errors import ChannelError
from .url import BrokerURL

__all__ = ["Broker", "Inspectable", "Limits", "Report", "Sink", "check_channel"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one broker can carry; where an option says less, the option holds.

    Attributes:
        max_payload_bytes: of one message, header included.
        max_channel_bytes: of one channel name in UTF-8.
    """

    max_payload_bytes: int = 512 * 1024 * 1024
    max_channel_bytes: int = 255


class Sink(Protocol):
    """Where a broker puts what it hears. Both are called on the broker's event loop."""

    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        """Take 1..n (channel, payload) in stream order; the reader waits until it returns."""

    def lost(self, channels: Sequence[str], reason: str) -> None:
        """Note that messages on these subscribed channels may be missing at this point."""


class Broker(Protocol):
    """A backend, opened by URL with `open_broker`. The module's docstring is its contract."""

    url: BrokerURL
    limits: Limits

    async def publish(
        self, channels: Sequence[str], payload: bytes, headers: Sequence[bytes] = ()
    ) -> None:
        """Publish one payload to 1..n different channels.

        Args:
            channels: valid names (`check_channel`), none twice; or the hub's control channel, whose
                name of 8 bytes begins with U+0001.
            payload: at most `limits.max_payload_bytes`, headers included.
            headers: one for each channel, put before the payload there; empty for none.

        Raises:
            PublishError: the server did not certainly accept it for every channel.
            BrokerClosed: after `aclose`.
        """

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe to 1..n channels; returns once all are acknowledged.

        A cancelled call wants none of the channels that it asked for first.

        Raises:
            SubscribeError: not acknowledged within `subscribe_timeout_seconds`, or refused.
            BrokerClosed: after `aclose`.
        """

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """Unsubscribe; nothing is delivered on these channels after the call began."""

    async def aclose(self) -> None:
        """Close; idempotent. Calls that wait for the server raise."""


@dataclasses.dataclass
class Report:
    """What a broker says about the server behind it; shown by `python -m django_sockets check`.

    Attributes:
        server: product and version, such as "valkey 9.1.0".
        topology: such as "one node".
        nodes: address of each server that messages go through -> what it is and its round trip.
        features: short name -> what was found.
        limits: short name -> value with its unit.
        warnings: sentences about what will bite, with what to do.
        problem: why the server cannot serve as a broker, or None.
    """

    server: str
    topology: str
    nodes: dict[str, str] = dataclasses.field(default_factory=dict)
    features: dict[str, str] = dataclasses.field(default_factory=dict)
    limits: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    problem: str | None = None


@runtime_checkable
class Inspectable(Protocol):
    """The ability of a broker to look at its server, for `check`."""

    async def inspect(self) -> Report:
        """Ask the server what it is and can do.

        Raises:
            ConnectError: it could not be reached.
        """


@functools.lru_cache(maxsize=4096)
def _size_bytes(channel: str) -> int:
    """Of a name that can be used if it is not too long; with one argument the cache is cheapest."""
    try:
        size = len(channel.encode())
    except UnicodeEncodeError:
        raise ChannelError(channel, "cannot be written as UTF-8: use valid text") from None
    if not size:
        raise ChannelError(channel, "is empty: give it a name")
    if _CONTROL.search(channel):
        raise ChannelError(channel, "contains control characters: remove them")
    if "*" in channel:
        raise ChannelError(
            channel, "contains '*': there are no wildcard subscriptions, name each channel"
        )
    return size


def check_channel(channel: object, max_bytes: int = Limits.max_channel_bytes) -> str:
    """Return the channel if its name is valid.

    Args:
        channel: 1 to `max_bytes` bytes of UTF-8, without control characters and without `*`.
        max_bytes: the broker's limit.

    Raises:
        ChannelError: saying what is wrong and what to do.
    """
    if not isinstance(channel, str):
        raise ChannelError(channel, f"is {type(channel).__name__}, not str: use str(...)")
    size = _size_bytes(channel)
    if size > max_bytes:
        raise ChannelError(channel, f"has {size} bytes: use at most {max_bytes} bytes of UTF-8")
    return channel
