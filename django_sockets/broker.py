"""The Broker protocol: the contract between the hub and a backend.

A broker moves opaque `bytes` on named channels. It does not depend on sockets, JSON or Django.
`django_sockets.testing.BrokerContract` checks this contract on any backend:

- A broker belongs to one event loop. It connects when it is first used, not when it is created.
- `publish` returns when the server has accepted the payload for every channel. Otherwise it raises
  `PublishError` with the channels that failed and the channels whose outcome is unknown. A broker
  never repeats a publish whose outcome is unknown. On each channel, successive calls reach the
  server in the order of the calls. All callers share a small fixed number of connections.
- `subscribe` returns when the server has acknowledged every channel. Messages that are published
  after that are delivered. It waits at most `subscribe_timeout_seconds`. Then it raises
  `SubscribeError` and keeps none of the channels that this call requested first. When calls of
  `subscribe` and `unsubscribe` overlap, the last call decides.
- Messages go to the sink in the order of the server's stream. After a fault, a broker may lose,
  repeat or reorder messages, because the hub detects this with the envelope. When a connection
  with acknowledged subscriptions is lost, the broker subscribes again and then calls `sink.lost`
  with exactly those channels. The call comes after the last message before the loss and before the
  first message after it.
- A peer that is dead but has not closed the connection is detected within `dead_peer_seconds`.
- A broker raises no exception of a driver. No message, log line or repr contains a secret.
- `aclose` may be called twice. It leaves no task, thread, socket or subscription behind.

`Inspectable`, `SupportsHistory`, `SupportsPresence` and `SupportsQueue` are abilities that a broker
may have in addition.

This module imports only `errors`, `history`, `presence` and `url`. The hub and the backends import
it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Awaitable, Callable, Collection, Container, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from .errors import ChannelError
from .history import READ_BYTES, HistoryReply, Start
from .presence import (
    MAX_ENTRIES,
    LeaseAction,
    LeaseReply,
    PresenceChange,
    PresenceDiff,
    PresenceSnapshot,
)
from .url import BrokerURL

__all__ = [
    "HANDED_OVER",
    "Broker",
    "EagerSink",
    "HistoryItem",
    "HistorySink",
    "Inspectable",
    "Limits",
    "NoReplyInTime",
    "PresenceSink",
    "QueueEntry",
    "Report",
    "Sink",
    "SupportsHistory",
    "SupportsPresence",
    "SupportsQueue",
    "ThreadPublisher",
    "check_channel",
    "deliver_now",
]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of one broker. A smaller option takes precedence.

    Attributes:
        max_payload_bytes: size of one message with its header.
        max_channel_bytes: size of one channel name in UTF-8.
    """

    max_payload_bytes: int = 512 * 1024 * 1024
    max_channel_bytes: int = 255


class Sink(Protocol):
    """The receiver of messages. A broker calls both methods on its event loop."""

    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        """Take 1..n pairs of channel and payload in the order of the stream.

        The reader of the broker waits until the call returns.
        """

    def lost(self, channels: Sequence[str], reason: str) -> None:
        """Take note that messages on these subscribed channels may be missing at this point."""


@runtime_checkable
class EagerSink(Sink, Protocol):
    """A sink that takes messages without a task, as the hub does."""

    def deliver_now(self, batch: Sequence[tuple[str, bytes]]) -> Awaitable[None] | None:
        """`deliver` within the call.

        Returns:
            None if the sink has taken the batch; else an object that the reader awaits before it
            delivers anything more.
        """


def deliver_now(
    sink: Sink, subscribed: Callable[[], Container[str]]
) -> Callable[[Sequence[tuple[str, bytes]]], Awaitable[None] | None]:
    """`deliver_now` of a sink; for a sink without it, a function that awaits `deliver`.

    Args:
        subscribed: returns the subscribed channels. An unsubscribe may come between the reading of
            a batch and the begin of `deliver`.
    """
    if isinstance(sink, EagerSink):
        return sink.deliver_now

    async def deliver(batch: Sequence[tuple[str, bytes]]) -> None:
        channels = subscribed()
        batch = [item for item in batch if item[0] in channels]
        if batch:
            await sink.deliver(batch)

    return deliver


class Broker(Protocol):
    """A backend. `open_broker` makes it from a URL. The module docstring is its contract."""

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


class NoReplyInTime(Exception):
    """The server did not answer within the time that the caller set for this call."""


class ThreadPublisher(Protocol):
    """The ability of some brokers to publish on the calling thread, without their event loop.

    A broker that has it offers it as an attribute `thread_publisher`. It saves two thread switches
    for each plain call.
    """

    @property
    def lent(self) -> bool:
        """Whether threads may publish at this moment. For any thread."""

    @property
    def busy_here(self) -> bool:
        """Whether the calling thread is inside `publish_on_thread`, as in a signal handler. No
        call of this thread that waits for a publish could end then."""

    def lend_soon(self) -> None:
        """On the event loop: let threads publish as soon as nothing is queued."""

    def take_back(self) -> None:
        """On the event loop: when it returns, no thread makes headers or writes until it is lent
        again. Call it before you make the headers of a message."""

    def publish_on_thread(
        self,
        channels: Sequence[str],
        payload: bytes,
        headers: Callable[[], Sequence[bytes]],
        timeout_seconds: float,
    ) -> bool:
        """On any thread: publish like `Broker.publish`.

        Args:
            headers: makes one header for each channel. It is called when the message is next in
                order, for one thread at a time, and never between `take_back` and the next loan.

        Returns:
            False if the event loop must publish it; nothing was sent and no header made.

        Raises:
            PublishError: see `Broker.publish`.
            NoReplyInTime: it is unknown whether the server accepted the payload.
        """


class QueueEntry(NamedTuple):
    """One message of a queue.

    Attributes:
        payload: the bytes that were pushed.
        expires_ms: when the message expires, by the clock of the server; opaque to callers.
    """

    payload: bytes
    expires_ms: int


@runtime_checkable
class SupportsQueue(Protocol):
    """A broker that keeps queues: each message waits until one reader takes it.

    A queue has the name of a channel. Its messages are in the order of the pushes. Whenever the
    first message is put into an empty queue, the `doorbell` is published on that channel in the
    same atomic step, so that a waiting reader need not ask again and again. A message is taken at
    most once, also if its reader fails afterwards.

    `BrokerContract` checks this on backends that have the methods.
    """

    async def queue_push(
        self,
        queue: str,
        payload: bytes,
        *,
        capacity: int,
        expiry_ms: int,
        doorbell: bytes,
        once: bytes = b"",
    ) -> bool:
        """Put a message at the end of a queue.

        Args:
            queue: a valid channel name.
            payload: at most `limits.max_payload_bytes`.
            capacity: the most messages in the queue, over 0.
            expiry_ms: the message is dropped if no reader takes it within this time.
            doorbell: the bytes to publish if the queue was empty.
            once: an identifier of the message; a second push with the same one within `expiry_ms`
                does nothing and returns True. Empty for none.

        Returns:
            False if the queue is full; nothing was pushed.

        Raises:
            QueueError: the message was not pushed, or it is `unknown` whether it was.
            BrokerClosed: after `aclose`.
        """

    async def queue_pop(self, queue: str) -> tuple[QueueEntry | None, int]:
        """Take the first message of a queue.

        Returns:
            The message, or None if the queue is empty; and the number of expired messages that were
            dropped before it.

        Raises:
            QueueError: no message was taken; or it is `unknown` whether one was taken and lost.
            BrokerClosed: after `aclose`.
        """

    async def queue_return(self, queue: str, entry: QueueEntry, *, doorbell: bytes) -> None:
        """Put a message back to the front of its queue, unless it has expired.

        Raises:
            QueueError: the message was not put back, or it is `unknown` whether it was.
            BrokerClosed: after `aclose`.
        """

    async def queue_clear(self, prefix: str) -> None:
        """Remove all messages of all queues whose names begin with `prefix`.

        Raises:
            QueueError: some queues may remain.
            BrokerClosed: after `aclose`.
        """


@dataclasses.dataclass
class Report:
    """Facts about the server of a broker, for `python -m django_sockets check`.

    Attributes:
        server: product and version, such as "valkey 9.1.0".
        topology: such as "one node".
        nodes: address of each server that carries messages -> its role and round trip time.
        features: short name -> finding.
        limits: short name -> value with its unit.
        warnings: sentences that name a risk and what to do about it.
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
    """A broker that can inspect its server."""

    async def inspect(self) -> Report:
        """Ask the server for its product, topology and abilities.

        Raises:
            ConnectError: the server could not be reached.
        """


HANDED_OVER = "unsubscribed by the server"
"""Reason of `Sink.lost`: a server that works has given the channel away, as when a slot moves."""

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


@runtime_checkable
class PresenceSink(Sink, Protocol):
    """A receiver of messages and of the presence of watched channels.

    The broker makes all calls on its event loop. For one channel, they come in the order of the
    server's stream, also relative to the messages of the channel with the same name. The methods
    return at once. An error of a method is logged, and `presence_lost` follows.
    """

    def presence_snapshot(self, channel: str, snapshot: PresenceSnapshot | None) -> None:
        """Take the reply to a read of a watched channel.

        The snapshot contains every diff before it, and the diffs behind it follow on its version.
        It is the state of the server, also if its version is lower than that of a diff before it.

        Args:
            snapshot: None if the server did not answer within 5 seconds, or refused. The channel
                stays watched. The reason is logged.
        """

    def presence_diff(self, channel: str, diff: PresenceDiff) -> None:
        """Take a change of a watched channel.

        A diff whose version is not above that of the last snapshot or diff of its epoch is known
        already. If the version is higher by more than 1, or the epoch is another one, changes are
        missing: call `request_presence`.
        """

    def presence_lost(self, channels: Sequence[str], reason: str) -> None:
        """Take note that diffs of these watched channels may be missing at this point.

        As with `lost`, the broker has subscribed again. It does not read the channels by itself, so
        that the owner of entries can put them again first: call `request_presence`.
        """


@runtime_checkable
class SupportsPresence(Protocol):
    """A broker that keeps the entries of channels, and the leases of processes.

    `django_sockets.presence` describes the data. The entries of a channel are independent of its
    messages: neither a subscription nor a watch of the same channel affects the other one.

    The broker's sink must be a `PresenceSink` for `watch_presence`. `BrokerContract` checks this
    protocol on backends that have the methods.

    Attributes:
        lease_servers: opaque names of the 1..n servers that keep leases, one for each of several
            independent hosts. All processes see the same names. A process needs a lease at each
            server on whose channels it has entries.
    """

    lease_servers: Sequence[str]

    def lease_server_of(self, channel: str) -> str:
        """The lease server that tells which owners of entries on this channel are dead."""

    async def change_presence(
        self, channel: str, changes: Mapping[str, bytes], *, max_entries: int = MAX_ENTRIES
    ) -> PresenceChange:
        """Put and remove entries of a channel in one atomic step, and publish one diff of it.

        Only real changes count. A call without one publishes nothing and leaves the version
        unchanged, but renews the time for which the entries are kept. Removals come first. Calls
        for one channel reach the server in the order of the calls.

        Args:
            changes: field -> value, or `b""` to remove the entry; 1..n fields. Use at most some
                thousand in one call, because the server does nothing else meanwhile.
            max_entries: a new entry is refused if the channel has so many. Changes of entries, and
                removals, are never refused.

        Raises:
            PresenceError: nothing was changed; or it is `unknown` whether it was. Repeating the
                call does no harm, unless the same fields were changed meanwhile.
            BrokerClosed: after `aclose`.
            ValueError: a field names no process.
        """

    async def watch_presence(self, channels: Sequence[str]) -> None:
        """Subscribe to the diffs of 1..n channels, and read each one behind its subscription.

        The call returns when the server has acknowledged every channel, and the sink has got the
        first snapshot of each. After the loss of a connection, the broker subscribes again and
        calls `presence_lost`. A channel that is watched already is read again.

        Raises:
            SubscribeError, BrokerClosed: see `Broker.subscribe`.
        """

    async def unwatch_presence(self, channels: Sequence[str]) -> None:
        """End the watch. The sink gets nothing of these channels after the call began."""

    def request_presence(self, channel: str) -> None:
        """Read a watched channel; the snapshot goes to the sink. It replaces an open read.

        Without a connection, the read follows behind the next subscription of the channel. Exactly
        one snapshot follows, within 5 seconds, unless the channel is unwatched before. The call
        does nothing for a channel that is not watched.
        """

    async def read_presence(self, channels: Sequence[str]) -> dict[str, PresenceSnapshot]:
        """Read 1..n channels outside of the stream, without a watch.

        It costs one round trip per server.

        Raises:
            PresenceError: for some channels, the server did not answer in
                `publish_timeout_seconds` or refused.
            BrokerClosed: after `aclose`.
        """

    async def lease(
        self,
        server: str,
        process: str,
        action: LeaseAction,
        *,
        lease_seconds: float,
        grace_seconds: float = 0,
        adopt: Collection[str] = (),
    ) -> LeaseReply:
        """Begin, renew or end the lease of a process, and look which processes are dead.

        All times are those of the server's clock. Nobody could renew while the server was away. So
        if no process has called for more than half a lease, or if the clock went back, then every
        lease that had not ended at the last call has at least `lease_seconds` from now.

        Ended leases are forgotten after an hour. If there are more than `presence.ENDED_LEASES`,
        the oldest are forgotten earlier, except those of the last two leases; above
        `presence.ALL_ENDED`, these are forgotten, too. A forgotten process with entries is adopted
        again, and is dead one lease later.

        Args:
            server: one of `lease_servers`.
            process: an id of one incarnation of a process (`presence.check_process`). An id whose
                lease has ended is never used again.
            lease_seconds: 0.001 to 3600, and the same in all processes.
            grace_seconds: see `LeaseAction.END`; 0 to 3600.
            adopt: at most `presence.ADOPTED_AT_ONCE` ids that own entries. The server gives a lease
                to those that it does not know, so that they count as dead when nobody renews it.

        Raises:
            PresenceError: nothing was changed; or it is `unknown` whether it was. Repeating the
                call does no harm.
            BrokerClosed: after `aclose`.
            ValueError: an argument is not valid.
        """


@functools.lru_cache(maxsize=4096)
def _size_bytes(channel: str) -> int:
    """The size of a channel name that is valid apart from its length.

    The limit is not an argument, because the cache is faster with a single argument.
    """
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
        ChannelError: the name is not valid. The message says why and what to do.
    """
    if not isinstance(channel, str):
        raise ChannelError(channel, f"is {type(channel).__name__}, not str: use str(...)")
    size = _size_bytes(channel)
    if size > max_bytes:
        raise ChannelError(channel, f"has {size} bytes: use at most {max_bytes} bytes of UTF-8")
    return channel
