"""The subscriptions at one server: which channels are wanted, requested and granted.

The server acknowledges the names of a SUBSCRIBE command one by one, or refuses the command. It may
also end a subscription by itself. `SubscriptionState` keeps the wanted channels apart from the
commands and answers on the present connection. It writes the difference and reports the outcome to
its owner. `subscriber` reads the replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ...broker import HANDED_OVER
from ...errors import ConnectError
from ...loops import OfOneLoop
from ...url import BrokerURL
from .commands import PubSubCommands
from .connection import Connection
from .link_reads import LinkReads
from .open_reads import OpenReads
from .parser import ConnectionLost, ReplyError, is_push
from .pending_commands import PendingCommands
from .probe_channel import PROBE_RETRY_SECONDS, ProbeChannel
from .subscription_set import Subscription, SubscriptionSet
from .supervision import Supervisor

__all__ = ["ELSEWHERE", "Owner", "SubscriptionState"]

QUIET_TURNS, GATHERING_SECONDS = 3, 0.004
"""Commands are written once no channel was added for so many turns of the event loop, or after that
time. An idle process writes them at once; in a storm, many connections share one packet.
"""
REFUSED_RETRY_SECONDS = 1.0
"""Interval at which a refused subscription is requested again while it is wanted."""
ELSEWHERE = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "BUSY")
"""Prefixes of errors that mean "on another server" or "not now"."""


class Owner(Protocol):
    """Decides what the reports of a subscriber mean."""

    def granted(self, channel: str) -> str | None:
        """The server acknowledged the subscription. Returns why it had been lost, if it had."""

    def lost(self, channels: Sequence[str], reason: str) -> None:
        """Granted subscriptions were lost; they are requested again on the next connection."""

    def displaced(self, channels: Sequence[str], error: ReplyError | None) -> None:
        """The server cannot serve these wanted channels now, or ended them by itself (no error).

        They are requested again after `ask_again`, and on the next connection.
        """

    def refused(self, channel: str, error: ReplyError) -> None:
        """The server refused the subscription; it is requested again while it is wanted."""

    def unreachable(self, channels: Sequence[str], error: ConnectError) -> None:
        """No connection could be made for these wanted channels; the subscriber tries again."""


class SubscriptionState(OfOneLoop):
    """The subscriptions at one server, on the present connection and on later ones.

    Args:
        owner: decides what the reports mean.
        probe_like: returns the name of the delivery probe's channel on the server that serves a
            given name; None for no probe.

    Attributes:
        owner: may be replaced.
        subscriptions: the wanted and the granted ones.
        regained: reason -> channels that were lost and are granted again; the gap is reported
            before their next message.
        probe: the delivery probe's channel.
        needed: set while a connection is needed or present.
        fruitful: whether the present or last connection was granted a subscription.
        reads: the reads on the connection, if the broker makes any.
    """

    def __init__(
        self,
        url: BrokerURL,
        owner: Owner,
        pubsub: PubSubCommands,
        *,
        probe_like: Callable[[bytes], bytes] | None,
        reads: OpenReads | None = None,
    ) -> None:
        self._url = url
        self.owner = owner
        self._pubsub = pubsub
        self._supervisor = Supervisor(url)
        self.subscriptions = SubscriptionSet(pubsub)
        self.regained: dict[str, list[str]] = {}
        self.probe = ProbeChannel(url, probe_like)
        self.needed = asyncio.Event()
        self.fruitful = False
        self._settling: asyncio.Future[None] | None = None
        self._pending = PendingCommands(pubsub)
        self.reads = (
            None if reads is None else LinkReads(reads, self._pending, self.subscriptions, pubsub)
        )
        self._flush_due = False

    @property
    def connection(self) -> Connection | None:
        """The present connection."""
        return self._pending.connection

    # Requested channels

    def want(self, channel: str, name: bytes) -> bool:
        """Subscribe to a channel; True if the server has granted it already."""
        if self.subscriptions.want(channel, name):
            return True
        if self.connection is None:
            self.needed.set()
        self._flush_soon()
        return False

    def unwant(self, name: bytes) -> str | None:
        """Unsubscribe from a name, which has no route from now on. Returns its channel."""
        subscription = self.subscriptions.unwant(name)
        if subscription is None:
            return None
        if name in self.subscriptions.changed:
            self._flush_soon()
        self._check_needed()
        return subscription.channel

    def ask_again(self, name: bytes) -> None:
        """Subscribe again to a displaced or refused channel, if it is still wanted."""
        if self.subscriptions.get(name) is not None:
            self.subscriptions.changed[name] = None
            self._flush_soon()

    @property
    def waiting(self) -> bool:
        """Whether a connection is needed and missing."""
        return self.connection is None and self.needed.is_set()

    def _drop(self, subscription: Subscription) -> None:
        self.subscriptions.drop(subscription)
        self._check_needed()

    def _check_needed(self) -> None:
        if not self.subscriptions and self.connection is None:
            self.needed.clear()  # No subscription needs a connection any more.

    # The connection

    def begin(self, connection: Connection) -> None:
        """A connection was opened: subscribe to every wanted channel on it."""
        self._pending.connection = connection
        self.needed.set()  # The channel that needed it may be gone, and others will follow.
        self.fruitful = False
        self.subscriptions.begin()
        self._flush()

    def end(self, reason: str) -> None:
        """The connection is lost: report the lost channels and drop the unwanted ones."""
        self._pending.end(reason)
        if self.reads is not None:
            self.reads.end()
        self.probe.name = None
        active = [channel for channel, _ in self.subscriptions.carried]
        regained = dict(self.regained)
        self.regained.clear()
        self.subscriptions.end()
        self._check_needed()
        self._end_wait()
        # Last, because the owner's code may raise.
        for earlier, channels in regained.items():
            self.owner.lost(channels, earlier)
        self.owner.lost(active, reason)

    @property
    def settled(self) -> bool:
        """Whether the server has answered every command."""
        answered = self._pending.first is None and not self.subscriptions.changed
        return self.connection is not None and answered

    async def until_settled(self) -> None:
        """Wait until `settled`, or until the connection is lost. Only one caller may wait."""
        if not self.settled:
            self._settling = self._loop.create_future()
            await self._settling

    def check_settled(self) -> None:
        """Wake the caller of `until_settled` if nothing is unanswered any more."""
        if self._settling is not None and self.settled:
            self._end_wait()

    def _end_wait(self) -> None:
        if self._settling is not None and not self._settling.done():
            self._settling.set_result(None)
        self._settling = None

    # Commands

    def _flush_soon(self) -> None:
        if self.connection is not None and not self._flush_due:
            self._flush_due = True
            self._gather(0, QUIET_TURNS, self._loop.time() + GATHERING_SECONDS)

    def _gather(self, before: int, turns: int, until: float) -> None:
        gathered = len(self.subscriptions.changed)
        turns = turns - 1 if gathered == before else QUIET_TURNS
        if turns and self._loop.time() < until:
            self._loop.call_soon(self._gather, gathered, turns, until)
            return
        try:
            self._flush()
        except Exception as exc:
            # Some commands may have been written: subscribe to everything on a new connection.
            self._supervisor.failed("subscribing to channels", exc)
            self.fruitful = False
            if self.connection is not None:
                self.connection.abort()

    def _flush(self) -> None:
        """Write the difference between the wanted and the sent state, for many callers at once."""
        self._flush_due = False
        if self.connection is None:
            return
        asked, ended = self.subscriptions.take_changes()
        self.probe.update(self.subscriptions.first_requested(), asked, ended)
        self._pending.subscribe(asked)
        if self.reads is not None:
            self.reads.behind(asked)
        if ended:
            self._pending.unsubscribe(ended)
        self.check_settled()

    def ask(self, command: tuple[bytes, ...]) -> asyncio.Future[Any]:
        """Send a command of its own; see `PendingCommands.ask`.

        Every message that arrived before the reply has been delivered by then.
        """
        return self._pending.ask(command)

    # Replies

    def answered(self, reply: Any) -> None:
        """Handle an acknowledgement, a reply, or an unsubscription by the server."""
        kind = reply[0] if isinstance(reply, list) and reply else None
        if kind == self._pubsub.subscribed:
            self._subscribed(reply[1])
        elif isinstance(reply, ReplyError):
            self._refused(reply)
        elif kind == self._pubsub.unsubscribed:
            self._unsubscribed(reply[1])
        elif kind == b"pong" or not is_push(reply):
            self._replied(reply)
        self.check_settled()

    def _subscribed(self, name: bytes) -> None:
        if not self._pending.acknowledge(name):
            return
        if name == self.probe.name:
            self.probe.granted()
        self._settle(name)

    def _unsubscribed(self, name: bytes) -> None:
        """Handle an unsubscription.

        One that we asked for is settled by the reply behind it. Any other one was made by the
        server, which means that the channel was lost.
        """
        command = self._pending.first
        if command is not None and command.ends:
            command.take_end(name)
        subscription = self.subscriptions.get(name)
        if subscription is not None and self.subscriptions.is_active(subscription):
            self.subscriptions.remove_route(name)
            subscription.sent = None
            self.owner.lost([subscription.channel], HANDED_OVER)
            self.owner.displaced([subscription.channel], None)
        elif name == self.probe.name:
            self._displace_probe()

    def _replied(self, reply: Any) -> None:
        command = self._pending.first
        if command is None or command.reply is None:
            return
        self._pending.pop()
        for name in command.names:
            self._settle(name)
        if not command.reply.done():
            command.reply.set_result(reply)

    def _settle(self, name: bytes) -> None:
        """Act on the last outstanding answer of a channel."""
        subscription = self.subscriptions.get(name)
        if subscription is None:
            return
        subscription.unanswered -= 1
        if self.subscriptions.is_active(subscription):
            self.subscriptions.add_route(subscription)
            self.fruitful = True
            reason = self.owner.granted(subscription.channel)
            if reason is not None:
                self.regained.setdefault(reason, []).append(subscription.channel)
        elif (
            not subscription.unanswered
            and not subscription.wanted
            and subscription.sent != self._pubsub.subscribe
        ):
            self._drop(subscription)

    # Errors

    def _refused(self, error: ReplyError) -> None:
        command = self._pending.first
        if command is None:
            raise ConnectionLost(f"the server says: {error}")
        if command.reply is not None:
            # If UNSUBSCRIBE is refused, nothing is delivered anyway: the name has no route.
            if command.take_error(error):
                self._replied(error)
            return
        self._pending.pop()
        if str(error).startswith(ELSEWHERE):
            self._elsewhere(command.names, error)
        elif len(command.names) > 1:
            for name in command.names:  # Only some may be forbidden: try each alone.
                subscription = self.subscriptions.get(name)
                if subscription is None or subscription.sent == self._pubsub.subscribe:
                    self._pending.subscribe([name])
                else:  # UNSUBSCRIBE was sent meanwhile and decides.
                    self._settle(name)
        elif command.names[0] == self.probe.name:
            self._loop.call_later(self.probe.refused(error), self._flush_soon)
        elif (subscription := self.subscriptions.get(command.names[0])) is not None:
            self._refused_one(subscription, error)

    def _elsewhere(self, names: Sequence[bytes], error: ReplyError) -> None:
        channels = []
        for name in names:
            subscription = self.subscriptions.get(name)
            if subscription is None:
                if name == self.probe.name:
                    self.probe.name = None
                    self._loop.call_later(PROBE_RETRY_SECONDS, self._flush_soon)
                continue
            subscription.unanswered -= 1
            if subscription.wanted and not subscription.unanswered:
                subscription.sent = None
                channels.append(subscription.channel)
            elif not subscription.wanted and not subscription.unanswered:
                self._drop(subscription)
        if channels:
            self.owner.displaced(channels, error)

    def _displace_probe(self) -> None:
        """Choose another name for the probe, because the slot of its name has moved."""
        self.probe.name = None
        self._flush_soon()

    def _refused_one(self, subscription: Subscription, error: ReplyError) -> None:
        subscription.unanswered -= 1
        subscription.sent = None
        self.owner.refused(subscription.channel, error)
        if subscription.wanted:
            self._loop.call_later(REFUSED_RETRY_SECONDS, self.ask_again, subscription.name)
        elif not subscription.unanswered:
            self._drop(subscription)
