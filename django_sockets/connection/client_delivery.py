"""The delivery of broadcasts to one client. The hub has it as a subscriber.

Broadcasts go straight to the outbox, or through an inbox to the hooks of a class that has its own.
While `connect` runs they wait in a `Hold`. If a client reads too slowly, the overflow policy
decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..delivery.events import HISTORY, OVERFLOW, EventQueue, Gap, Presence
from ..delivery.flow_control import STUCK_SECONDS, Backlog
from ..delivery.hold import NOT_YET, ClientEvent, Hold
from ..delivery.message import Delivery
from ..delivery.send_queue import SendQueue
from ..errors import CallError, SubscribeError
from ..history import Recovery
from ..hub.connections import Unsent
from ..hub.hub import Hub
from ..log import LogThrottle
from ..observer import seam
from ..runtime.async_hygiene import tidied
from ..tracer import traced, tracing
from ..url import BrokerOptions
from .close_codes import NO_CODE, TRY_AGAIN
from .observed import observed_hook
from .outbox import Item
from .overflow import CLOSE, Inbox, Overflow
from .socket_class import Socket
from .tasks import spawn
from .unsent import unsent_of

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["ClientDelivery"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)


class ClientDelivery:
    """The subscriber of one connection.

    Attributes:
        queue: the broadcasts that wait for `async_receive_broadcast` before the listeners run, or
            for `connect`. None if broadcasts are passed on at once.
    """

    __slots__ = ("_connection", "_inbox", "_overflow", "_slow", "_socket", "queue")

    def __init__(self, connection: Connection, socket: Socket) -> None:
        self._connection = connection
        self._socket = socket
        self.queue: EventQueue | Hold | None = None
        self._inbox: Inbox | None = None
        self._overflow: Overflow | None = None
        self._slow = False

    # Subscribing

    def add(
        self,
        names: list[str],
        since: str | Mapping[str, str] | None = None,
        replay: int = 0,
        presence: bool | Collection[str] = False,
    ) -> Coroutine[Any, Any, dict[str, Recovery]]:
        """Subscribe to channels. The caller awaits the result.

        Args:
            since, replay: see `Hub.add`. While `connect` runs, its result tells what is missing,
                and `gap` is not called.
            presence: see `Hub.add`.

        Raises:
            SubscribeError: the socket would be on too many channels.
        """
        connection = self._connection
        hub = connection.shared_hub()
        if self.too_many(names):
            limit = self._socket.max_subscriptions
            problem = f"a socket may have {limit} channels (max_subscriptions)"
            raise SubscribeError(connection.config.url, problem, channels=names)
        if self.queue is NOT_YET:
            self._hold(hub)
        elif self.queue is None and not connection.serving:
            self.queue = hub.new_queue()
        adding = hub.add(
            self, names, direct=self._direct(), since=since, replay=replay, presence=presence
        )
        return adding if since is None else self._told_by_result(adding, since)

    async def _told_by_result(
        self,
        adding: Coroutine[Any, Any, dict[str, Recovery]],
        since: str | Mapping[str, str],
    ) -> dict[str, Recovery]:
        recoveries = await adding
        hold = self._held()
        if hold is not None:
            hold.forget_gap(
                [
                    name
                    for name, recovery in recoveries.items()
                    if not recovery.recovered and (isinstance(since, str) or name in since)
                ],
                HISTORY,
            )
        return recoveries

    def _direct(self) -> SendQueue | None:
        """The queue to which the fan-out may deliver directly, or None."""
        connection = self._connection
        if (
            not connection.serving
            or connection.definition.own_broadcast_hook
            or isinstance(self.queue, EventQueue)
            or self._socket.ws_encoder is not None
            or connection.asgi_send is None
        ):
            return None
        return connection.outbox

    def too_many(self, names: Sequence[str]) -> bool:
        """The socket would be on more than `max_subscriptions` channels."""
        hub = self._connection.hub
        owned = () if hub is None else hub.channels_of(self)
        limit = self._socket.max_subscriptions
        if len(owned) + len(names) <= limit:
            return False
        new = {name for name in names if name not in owned}
        return len(owned) + len(new) > limit

    async def remove(self, names: list[str]) -> None:
        """Unsubscribe from channels."""
        hold = self._held()
        if hold is not None:
            hold.forget(names)
        hub = self._connection.hub
        if hub is not None:
            await hub.remove(self, names)

    # Beginning and end

    def start(self) -> None:
        """Pass broadcasts on to the client, or to the class's own hooks, in order."""
        if self._connection.definition.own_broadcast_hook:
            self._inbox = Inbox(self)
        queue, self.queue = self.queue, None
        pass_on = self._pass_on
        # Under a server, `connect` comes first.
        if self._socket.hold_broadcasts and self._connection.outbox.held:
            self.queue = NOT_YET
            if queue is not None:  # `authorize` has subscribed.
                pass_on = self._hold(self._connection.shared_hub()).put
        if isinstance(queue, EventQueue):
            for event in queue.drain():
                pass_on(event)

    async def end(self) -> None:
        """Unsubscribe from all channels and drop the queued events: the connection has ended."""
        hub = self._connection.hub
        if hub is not None:
            await hub.remove(self)
        if self._inbox is not None:
            self._inbox.end()

    async def receive(self) -> tuple[str, Any]:
        """See `BaseSocketServer.async_receive_broadcast`."""
        connection = self._connection
        queue = self.queue
        if not isinstance(queue, EventQueue) or connection.serving:
            raise CallError(
                "subscribe first; once listeners run, override async_handle_received_broadcast"
            )
        while True:
            event = await connection.awaited(queue.next)
            if event is None:
                raise CallError("the socket has ended")
            if isinstance(event, Delivery):
                return event.channel, event.data()
            await self._tell(event)

    # Called by the hub

    def on_delivery(self, delivery: Delivery) -> None:
        """Queue a broadcast or pass it on."""
        if delivery.origin is not None and delivery.origin == self._connection.outbox.origin:
            return
        if self.queue is not None:
            self.queue.on_delivery(delivery)
        else:
            self._pass_on(delivery)

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        """Queue a gap or pass it on."""
        if self.queue is not None:
            self.queue.on_gap(channels, reason)
        else:
            self._pass_on(Gap(channels=tuple(channels), reason=reason))

    def on_presence(self, change: Presence) -> None:
        """Queue a change of the members of a channel or pass it on."""
        if not self.tells_presence(change):
            return
        if self.queue is not None:
            self.queue.on_presence(change)
        else:
            self._pass_on(change)

    # To the hooks of the class, or to the client

    def _pass_on(self, event: ClientEvent) -> None:
        if self._inbox is None and (self._tells_gaps or isinstance(event, Presence)):
            if isinstance(event, Delivery) and self.takes_whole_runs:
                self._push(event)
                return
            # Later events wait for the hook, so the fan-out must not use the outbox.
            self._connection.outbox.seal()
            self._inbox = Inbox(self)
        if self._inbox is not None:
            self._inbox.offer(event)
        elif isinstance(event, Delivery):
            self._push(event)

    def inbox_rests(self, inbox: Inbox) -> None:
        """Called by an inbox when it is empty."""
        if self._inbox is inbox and not self._connection.definition.own_broadcast_hook:
            self._inbox = None
            self._unseal()

    def _unseal(self) -> None:
        """Let the fan-out use the outbox again, unless events wait in another queue."""
        connection = self._connection
        if self.queue is None and self._inbox is None and not connection.closing:
            connection.outbox.unseal()

    @property
    def takes_whole_runs(self) -> bool:
        """See `Sender`. A policy that drops messages must be able to tell of the hole."""
        return self._socket.overflow == CLOSE or not self._tells_gaps

    @property
    def _tells_gaps(self) -> bool:
        """Somebody is told of a gap: the class's own hook, or a client of the protocol."""
        return self._connection.definition.own_gap_hook

    async def _tell(self, event: Gap | Presence) -> None:
        if isinstance(event, Gap):
            await self._tell_gap(event)
        else:
            await self._tell_presence(event)

    async def _tell_gap(self, gap: Gap) -> None:
        await self._connection.call(self._socket.gap, gap.channels, gap.reason)

    def tells_presence(self, change: Presence) -> bool:
        """Whether somebody is told of a change of members."""
        definition = self._connection.definition
        return definition.own_presence_hook and bool(
            change.joined or change.left or definition.hook_takes_updated
        )

    async def _tell_presence(self, change: Presence) -> None:
        args = [change.channel, change.joined, change.left]
        if self._connection.definition.hook_takes_updated:
            args.append(change.updated)
        await self._connection.call(self._socket.presence, *args)

    def _push(self, delivery: Delivery) -> None:
        connection = self._connection
        if connection.asgi_send is None:
            self.no_send()
        elif connection.closing:
            self.discarded(1)
        else:
            item = self._item_of(delivery)
            self.policy().put(connection.outbox, item, len(delivery.payload))

    async def _send_on(self, delivery: Delivery) -> None:
        """`_push` that may wait for the outbox. Later events wait in the inbox meanwhile."""
        connection = self._connection
        if connection.asgi_send is None or connection.closing or connection.outbox.idle:
            self._push(delivery)
        else:
            await connection.outbox.run(self._item_of(delivery))

    def _item_of(self, delivery: Delivery) -> Item:
        encoder = self._socket.ws_encoder
        if encoder is not None:
            return delivery.event_by(encoder, self._socket.ws_encoder_is_bytes)
        return delivery.event() if self._connection.outbox.write is None else delivery

    # Called by the inbox

    async def take(self, event: ClientEvent) -> None:
        """Give one event to the hooks, in a class with hooks of its own."""
        connection, socket = self._connection, self._socket
        try:
            if not isinstance(event, Delivery):
                await self._tell(event)
            elif not connection.definition.own_broadcast_hook:
                await self._send_on(event)
            else:
                hook: Any = socket.async_handle_received_broadcast
                if connection.definition.hook_takes_position:
                    hook = partial(hook, position=event.position)
                calling = tidied(hook(event.channel, event.data()))
                function = socket.async_handle_received_broadcast
                if (tracer := tracing.tracer) is not None:
                    span = tracer.broadcast_hook(type(socket), function, event.traceparent)
                    calling = calling if span is None else traced(span, calling)
                if (observer := seam.observer) is not None:
                    calling = observed_hook(observer, type(socket), function, calling)
                await calling
        except Exception as exc:
            await connection.failed(exc)

    def inbox_failed(self, exc: Exception) -> None:
        """`take` has raised this."""
        spawn(self._connection.failed(exc))

    # Called by the outbox

    def new_backlog(self) -> Backlog:
        """Make the queue for messages that wait for a client that reads slowly."""
        socket, hub = self._socket, self._connection.shared_hub()
        return Backlog(socket.outbox_messages, socket.outbox_bytes, hub.congestion)

    @property
    def unsent(self) -> Unsent | None:
        """What waits for the client; None if nothing ever has. For any thread."""
        outbox, inbox, hold = self._connection.outbox, self._inbox, self._held()
        holds = [*self._other_holds(), *([] if hold is None else [hold])]
        if inbox is not None:
            return unsent_of(outbox, inbox, [*holds, *inbox.holds])
        return unsent_of(outbox, outbox, holds) if holds else outbox.unsent

    def _other_holds(self) -> Collection[Hold]:
        """Further queues of a subclass. For any thread."""
        return ()

    def no_send(self) -> None:
        """Warn that there is no `send` for an event."""
        self._connection.warn_once("send side", "%s has no send callable: nothing is sent")

    def client_gone(self, exc: Exception) -> None:
        """End the connection: the server's `send` raised this."""
        # A server's `send` raises OSError for a client that has left (ASGI 2.4): no news. For
        # one that it has closed itself, for a bad frame, uvicorn raises RuntimeError: clients can
        # bring that about at will.
        name = type(self._socket).__name__
        logger.debug("%s: sending to the client failed", name, exc_info=exc, extra={"socket": name})
        if not isinstance(exc, OSError):
            text = "%s: sending to the client failed: %r"
            _throttle.log(
                logging.WARNING,
                f"{name} send",
                text,
                name,
                exc,
                extra={"socket": name, "reason": exc},
            )
        self._connection.end(NO_CODE)

    def discarded(self, count: int) -> None:
        """Count messages that never reached the client because it ended."""
        if count:
            self._connection.count("discarded", count)

    # Broadcasts that wait for `connect`

    @property
    def outbox_bytes(self) -> int:
        """See `HoldOwner`."""
        return self._socket.outbox_bytes

    @property
    def outbox_messages(self) -> int:
        """See `HoldOwner`."""
        return self._socket.outbox_messages

    @property
    def _hold_seconds(self) -> float:
        return self._socket.hold_seconds or self._connection.config.settings.hold_seconds

    def _hold(self, hub: Hub) -> Hold:
        """Hold broadcasts back, for at most `hold_seconds`."""
        self.queue = hold = Hold(self)
        hub.holds.add(hold, self._hold_seconds)
        return hold

    def _held(self) -> Hold | None:
        """The hold of broadcasts until `connect` returns; None if there is none."""
        queue = self.queue
        return queue if isinstance(queue, Hold) and queue is not NOT_YET else None

    async def release(self) -> None:
        """Pass on the broadcasts that waited for `connect`, in order, and end the hold."""
        if not self.release_empty():
            hold = self._held()
            if hold is not None and not (hold.passing or hold.closed):
                hold.passing = True
                self._connect_is_over()
                # A separate task: a cancelled caller must not leave the hand-over half done.
                await asyncio.wait([spawn(self._hand_over(hold))])

    def release_empty(self) -> bool:
        """End the hold and return True, unless something waits or nothing is held."""
        queue = self.queue
        if not isinstance(queue, Hold) or self._connection.closing:
            return False
        if queue is not NOT_YET:
            if queue:
                return False
            self._connection.shared_hub().holds.discard(queue)
        self.queue = None
        if self._connection.session is not None:
            self._connect_is_over()
        self._unseal()
        return True

    def _connect_is_over(self) -> None:
        """Tell a client of the protocol that what follows is not from `connect`."""
        if self._connection.session is not None:
            self._connection.session.ready()

    async def _hand_over(self, hold: Hold) -> None:
        hub = self._connection.shared_hub()
        hub.holds.discard(hold)
        send_queue = self._connection.outbox if self._inbox is None else self._inbox
        await hold.hand_over(self._pass_on, send_queue, hub.congestion)
        self.release_empty()

    def discard_held(self) -> None:
        """Drop the broadcasts that wait for `connect`: the connection ends."""
        hold = self._held()
        if hold is not None:
            hold.close()
            self._connection.shared_hub().holds.discard(hold)

    def hold_expired(self) -> None:
        """End the hold: `connect` has not returned in time."""
        name = type(self._socket).__name__
        text = (
            "%s: connect has not returned within %g s (hold_seconds); broadcasts no longer wait "
            "for it. Call self.release() in connect once the present state is sent"
        )
        key = f"{name} {id(type(self._socket))} hold"
        _throttle.log(
            logging.WARNING,
            key,
            text,
            name,
            self._hold_seconds,
            extra={"socket": name, "seconds": self._hold_seconds},
        )
        spawn(self.release())

    def overran(self, event: ClientEvent, first: bool) -> None:
        """Count the oldest event, which was removed: too many wait for `connect` or `gap`."""
        count = int(isinstance(event, Delivery))
        if self._socket.overflow == CLOSE and not self._tells_gaps:
            self.discarded(count)
            self._close_slow("closed with 1013: too much waits for connect")
            return
        if count:
            self._connection.count("dropped_overflow")
        if first:
            self._gap_began("too much waits for connect or gap")

    def much_waits(self, hold: Hold) -> None:
        """Close the client if it does not read what the hook sends."""
        idle = self._connection.outbox.idle
        if self._socket.overflow == CLOSE and not (idle or hold.watched):
            hold.watched = True
            self._connection.home.call_later(STUCK_SECONDS, self._look_at_client, hold)

    def _look_at_client(self, hold: Hold) -> None:
        hold.watched = False
        inbox = self._inbox
        in_force = self.queue is hold or (inbox is not None and inbox.waiting is hold)
        if in_force and not hold.closed and self._connection.outbox.stuck:
            self._close_slow()

    # Clients that read too slowly

    def policy(self) -> Overflow:
        """The overflow policy of this socket."""
        if self._overflow is None:
            self._overflow = Overflow(
                self._socket.overflow,
                self._too_slow,
                lambda count: self._connection.count("dropped_overflow", count),
                self._gap_began,
            )
        return self._overflow

    def _too_slow(self, item: Any) -> None:
        self.discarded(not isinstance(item, (Gap, Presence)))
        self._close_slow()

    def _close_slow(self, what: str = "closed with 1013: the client reads too slowly") -> None:
        if not self._slow:
            self._slow = True
            self._connection.note("closed_overflow", what, TRY_AGAIN)
            spawn(self._connection.close(TRY_AGAIN))

    def _gap_began(self, why: str = "the client reads too slowly") -> None:
        self._connection.shared_hub().count_gap(OVERFLOW)
        name = type(self._socket).__name__
        text = "%s: broadcasts are dropped: %s"
        _throttle.log(
            logging.WARNING,
            f"{name} dropped",
            text,
            name,
            why,
            extra={"socket": name, "reason": why},
        )
