"""The ability to keep the last messages of channels, and the receiver of what was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from ..history import READ_BYTES, HistoryReply, Start
from .sink import Sink

__all__ = ["HistoryItem", "HistorySink", "SupportsHistory"]


HistoryItem: TypeAlias = tuple[str, bytes | HistoryReply]
"""A channel with a message, or with the reply to a read."""


@runtime_checkable
class HistorySink(Sink, Protocol):
    """A receiver of messages and of replies from the history."""

    async def deliver_with_history(self, batch: Sequence[HistoryItem]) -> None:
        """Take a batch that may contain replies, in the order of the stream.

        A reply has every message that the server had published before it. A kept message of its
        channel that stands before the reply is therefore also in the reply, or in the next one if
        the status is `CUT`. A message behind the reply follows on the last message in it.

        The reader of the broker waits until the call returns.
        """

    def history_renamed(self, channels: Sequence[str], history_id: bytes) -> None:
        """Use another history id for positions on these channels from now on.

        The server has chosen a new one although it has lost nothing, as Redis does when it gets
        its first replica.
        """


@runtime_checkable
class SupportsHistory(Protocol):
    """A broker that keeps messages by the rules in `url.history`. See docs/history.md.

    For a channel with a rule, `publish` gives the message an offset, keeps it and publishes it, in
    one step at the server. It does so only if the call has headers (envelopes): the header of a
    kept message gets the position field. Messages without headers are published and not kept. The
    promises of `publish` are the same with and without a rule. If the server has no memory left to
    keep a message, it removes the history of the channel and publishes without the field.

    Channels without a rule are not affected. Calls of the methods below may name only channels with
    a rule, and the broker's sink must be a `HistorySink` for the first two.

    Attributes:
        unkept: number of messages that were published and not kept for lack of memory.
    """

    unkept: int

    async def subscribe_with_history(self, starts: Mapping[str, Start]) -> None:
        """Subscribe to 1..n channels, and read each one behind its subscription.

        The commands use the same connection, so that the reply stands in the order of the stream.
        The call returns when the server has acknowledged every channel, and the sink has got the
        first reply of each. A read that the server did not answer within 5 seconds, or refused,
        gives a reply with the status `UNAVAILABLE`, and the channel stays subscribed.

        Args:
            starts: channel -> where to begin to read.

        Raises:
            SubscribeError, BrokerClosed: see `Broker.subscribe`. There is no reply.
        """

    def request_history(self, channel: str, start: Start) -> None:
        """Read a channel that is subscribed; the reply goes to the sink. It replaces an open read.

        The hub calls it after `Sink.lost`, and to read on after a reply with the status `CUT`.
        Without a connection, the read follows behind the next subscription of the channel.
        Exactly one reply follows, within 5 seconds, unless the channel is unsubscribed before.
        """

    async def read_history(
        self, starts: Mapping[str, Start], *, messages: int = 100, max_bytes: int = READ_BYTES
    ) -> dict[str, HistoryReply]:
        """Read 1..n channels outside of the stream, without a subscription.

        It costs one round trip per server. Reading renews the time for which the history is kept.

        Args:
            starts: channel -> where to begin to read.
            messages: maximum number of messages of a reply.
            max_bytes: maximum size of the messages of a reply, except that one may be larger.

        Returns:
            The reply of each channel. Its status is never `UNAVAILABLE`.

        Raises:
            HistoryError: for some channels, the server did not answer in `publish_timeout_seconds`
                or refused.
            BrokerClosed: after `aclose`.
        """
