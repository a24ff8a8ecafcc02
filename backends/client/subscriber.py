"""The subscribing connection to one server, kept open while any channel is wanted.

A supervised task connects as soon as a channel is wanted. It runs the read loop, the PING deadline
and the delivery probe concurrently. If one of them finds the connection dead, the task connects
again and subscribes to all channels again. `SubscriptionState` keeps the requested and the granted
channels. The owner (`subscriptions`) decides about lost, displaced and refused channels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterator
from typing import Any, Protocol, cast

from ...broker import Sink, deliver_now
from ...errors import ConnectError
from ...url import BrokerURL
from ..watches import DeliverNow, Item, report_lost
from .commands import PubSubCommands
from .connection import Connection, ConnectionLost, Opener
from .deadlines import Backoff, await_reply, first_of, keepalive, while_held
from .link_reports import LinkReports, SubscribingReports
from .open_reads import OpenReads, WrongServer
from .subscription_state import Owner, SubscriptionState
from .supervision import Supervisor

__all__ = ["Probe", "Subscriber"]

HELD_MESSAGES = 65_536
"""Messages that a standby connection may hold back; with more, it is closed."""


class Probe(Protocol):
    """Shows that published messages arrive on a subscriber's connection."""

    def name(self, like: bytes) -> bytes:
        """A new name for the probe's channel, on the server that serves the name `like`."""

    def run(self, subscriber: Subscriber, connection: Connection) -> Coroutine[Any, Any, None]:
        """Probe until cancelled. Raises ConnectionLost."""

    def received(self, payload: bytes) -> None:
        """A message arrived on the probe's channel."""


class Subscriber:
    """Delivers the messages of one server.

    Args:
        open_connection: connects; raises ConnectError.
        probe: None for a server on which nothing is published.
        connection: makes this a standby with a first connection. Its messages are held back until
            `release`. If the connection is lost before that, `until_settled` raises.
        reads: the open reads of the broker, if it makes any.
        backoff: the pauses between attempts to connect, if they are not the usual ones.
        reports: for another purpose than receiving messages.

    Attributes:
        state: the requested and the granted channels.
        trouble: why there is no connection at this moment, or None.
    """

    def __init__(
        self,
        url: BrokerURL,
        sink: Sink,
        owner: Owner,
        *,
        open_connection: Opener,
        probe: Probe | None,
        pubsub: PubSubCommands,
        connection: Connection | None = None,
        reads: OpenReads | None = None,
        backoff: Backoff | None = None,
        reports: LinkReports | None = None,
    ) -> None:
        self._url = url
        self._sink = sink
        self._open_connection = open_connection
        self._probe = probe
        self._kind_of_message = pubsub.message
        self._backoff = Backoff() if backoff is None else backoff
        self.state = SubscriptionState(
            url,
            owner,
            pubsub,
            probe_like=None if probe is None else probe.name,
            reads=reads,
        )
        # Without reads, a batch has only messages.
        plain = cast("DeliverNow", deliver_now(sink, self.state.subscriptions.routed_channels))
        self._deliver_now = plain if self.state.reads is None else self.state.reads.deliver_now
        self.trouble: ConnectError | None = None
        self._task: asyncio.Task[None] | None = None
        self._abort_reason = ""
        self._first = connection
        self._gate: asyncio.Event | None = None if connection is None else asyncio.Event()
        self._gone: str | None = None
        self._held: list[Item] = []
        # Messages that are read but not delivered yet, and the reply after them.
        self._batch: list[Item] = []
        self._deferred: Any = None
        self._delivery: Awaitable[object] | None = None
        self._supervisor = Supervisor(url)
        self._reports = SubscribingReports(url) if reports is None else reports

    # Channels

    def want(self, channel: str, name: bytes) -> bool:
        """Subscribe to a channel; True if the server has granted it already."""
        if self.state.want(channel, name):
            return True
        if self._task is None:
            loop = asyncio.get_running_loop()
            work = self._supervisor.keep("the subscribing connection", self._run)
            self._task = loop.create_task(work, name="django_sockets subscriber")
        return False

    def unwant(self, name: bytes) -> None:
        """Unsubscribe from a channel; nothing is delivered on it from now on."""
        channel = self.state.unwant(name)
        if self._held:
            self._held = [item for item in self._held if item[0] != channel]

    # Messages

    async def _read(self, connection: Connection) -> None:
        self._batch = []
        self._deferred = None
        while self._gate is not None:
            if self.state.settled or self._gate.is_set():
                await self._wait_for_release()
            else:
                self.take(iter(await connection.read()))
                self.flush()
        await connection.consume(self)

    def take(self, replies: Iterator[Any]) -> Coroutine[Any, Any, object] | None:
        """See `parser.Consumer`."""
        state, kind_of_message = self.state, self._kind_of_message
        if self._deferred is not None:
            state.answered(self._deferred)
            self._deferred = None
        routes, regained, batch = state.subscriptions.routes, state.regained, self._batch
        for reply in replies:
            if isinstance(reply, list) and reply and reply[0] == kind_of_message:
                if regained and self._gate is None:
                    self._report_regained()
                name = reply[1]
                channel = routes.get(name)
                if channel is not None:
                    batch.append((channel, reply[2]))
                elif (watch := state.subscriptions.watches.get(name)) and state.reads is not None:
                    state.reads.take_diff(watch, reply[2], batch)
                elif self._probe is not None and name == state.probe.name:
                    self._probe.received(reply[2])
                continue
            if (reads := state.reads) is not None and reads.is_reply(reply):
                if regained and self._gate is None:
                    self._report_regained()
                item = reads.answered(reply)
                state.check_settled()
                if item is not None:
                    batch.append(item)
                continue
            if batch:
                # The reply may signal a gap or wake a caller: deliver earlier messages first.
                waiting = self._deliver()
                batch = self._batch
                if waiting is not None:
                    self._deferred = reply
                    return waiting
            state.answered(reply)
        return None

    def flush(self) -> Coroutine[Any, Any, object] | None:
        """See `parser.Consumer`."""
        if self.state.regained and self._gate is None:
            self._report_regained()
        return self._deliver() if self._batch else None

    def _deliver(self) -> Coroutine[Any, Any, object] | None:
        """Pass the messages to the sink; returns a coroutine if it is not done at once."""
        batch, self._batch = self._batch, []
        if self._gate is None:
            waiting = self._delivery = self._deliver_now(batch)
            return None if waiting is None else while_held(self.state.connection, waiting)
        self._held += batch
        if len(self._held) > HELD_MESSAGES:
            raise ConnectionLost("too many messages arrived during the takeover")
        return None

    async def _wait_for_release(self) -> None:
        """Stop reading until the other subscriber has ended, because everything is granted."""
        if self._gate is None:
            return
        await while_held(self.state.connection, self._gate.wait())
        self._gate = None
        self._report_regained()
        self._batch, self._held = self._held, []
        if self._batch and (waiting := self._deliver()) is not None:
            await waiting

    def _report_regained(self) -> None:
        regained = self.state.regained
        for reason, channels in regained.items():
            report_lost(self._sink, channels, reason)
        regained.clear()

    # Taking over

    async def until_settled(self) -> None:
        """Wait for the server's replies to all commands.

        Raises:
            ConnectionLost: the connection was lost before `release`.
        """
        if self._gone is None:
            await self.state.until_settled()
        if self._gone is not None:
            raise ConnectionLost(self._gone)

    async def until_delivered(self, seconds: float) -> None:
        """Wait until every message that the server had sent before this call was delivered.

        Raises:
            ConnectionLost: there is no connection, it was lost, or no reply came in `seconds`.
        """
        reply = self.state.ask((b"PING",))
        if (connection := self.state.connection) is not None:
            await await_reply(connection, reply, seconds, "no answer to PING")
        reply.result()

    def mute(self) -> None:
        """Deliver nothing more, because another subscriber delivers from now on."""
        self.state.subscriptions.clear()

    def lose(self, reason: str) -> None:
        """Report all granted channels as lost."""
        self.state.owner.lost([channel for channel, _ in self.state.subscriptions.carried], reason)

    def reset(self, reason: str) -> None:
        """Drop the connection, if there is one, and connect again without a pause."""
        self._backoff.cut_short()
        connection = self._first if self.state.connection is None else self.state.connection
        if connection is not None:
            self._abort_reason = reason
            connection.abort()

    def hurry(self) -> None:
        """End the pause between two attempts to connect, because the next one should succeed."""
        if self.trouble is not None:
            self._backoff.cut_short()

    def release(self, owner: Owner) -> None:
        """Deliver the messages held back, after the gaps from before the takeover.

        Args:
            owner: receives the reports from now on.
        """
        self.state.owner = owner
        for channel, _ in self.state.subscriptions.carried:
            reason = owner.granted(channel)
            if reason is not None:
                self.state.regained.setdefault(reason, []).append(channel)
        if self._gate is not None:
            self._gate.set()

    # Connecting

    async def _run(self) -> None:
        while True:
            if self._first is None:
                await self.state.needed.wait()
            try:
                connection, self._first = self._first or await self._open_connection(), None
            except ConnectError as exc:
                self.trouble = exc
                self._reports.failed(exc)
                wanted = [channel for channel, _ in self.state.subscriptions.wanted]
                self.state.owner.unreachable(wanted, exc)
            except Exception as exc:
                self.trouble = ConnectError(self._url, f"cannot connect: {exc!r}")
                self._supervisor.failed("connecting to subscribe", exc)
            else:
                await self._live(connection)
                if self._gone is not None:
                    return  # The standby failed to take over, and there is nothing left to do.
            await self._backoff.pause()

    async def _live(self, connection: Connection) -> None:
        self._abort_reason = ""
        self.trouble = None
        self._reports.connected()
        reason = "closed"
        back_off = False
        try:
            self.state.begin(connection)
            await first_of(self._read(connection), self._watch(connection))
        except ConnectionLost as exc:
            reason = self._abort_reason or str(exc)
            back_off = isinstance(exc, WrongServer)
            self._reports.lost(reason)
        except Exception as exc:
            # An error of one subscriber or one reply must not end delivery on all channels.
            reason, back_off = "internal error", True
            self._reports.ended(reason)
            self._supervisor.failed("the subscriber", exc)
        finally:
            connection.abort()
            if asyncio.iscoroutine(self._delivery):
                self._delivery.close()  # The reader may have been cancelled before it began.
            self._held.clear()
            if self._gate is not None and not self._gate.is_set():
                self._gone = reason
            if self.state.fruitful and not back_off:
                self._backoff.reset()
            self.state.end(reason)

    async def _watch(self, connection: Connection) -> None:
        """Raise ConnectionLost as soon as the connection is found dead."""
        if self._gate is not None:
            await self._gate.wait()  # Reading may pause before that.
        watching = [
            keepalive(
                connection, lambda: self.state.ask((b"PING",)), self._url.options.dead_peer_seconds
            )
        ]
        if self._probe is not None:
            watching.append(self._probe.run(self, connection))
        await first_of(*watching)

    async def aclose(self) -> None:
        """Close the connection and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._first is not None:
            self._first.abort()
