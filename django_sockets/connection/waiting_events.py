"""The events of one socket that wait for its hooks.

While `connect` runs, broadcasts wait in a `Hold`. If the class has hooks of its own for broadcasts,
gaps or presence, events wait for them in an `Inbox`. Otherwise broadcasts go straight to the
outbox.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from ..delivery.events import EventQueue, Gap, Presence
from ..delivery.flow_control import STUCK_SECONDS
from ..delivery.hold import NOT_YET, ClientEvent, Hold
from ..delivery.message import Delivery
from ..hub.connections import Unsent
from ..hub.hub import Hub
from ..log import LogThrottle
from ..observer import seam
from ..runtime.async_hygiene import tidied
from ..tracer import traced, tracing
from ..url import BrokerOptions
from .client_sender import ClientSender
from .observed import observed_hook
from .overflow import CLOSE, Inbox
from .socket_class import Socket
from .tasks import spawn
from .unsent import unsent_of

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["WaitingEvents"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)


class WaitingEvents(ClientSender):
    """The hold and the inbox of one connection.

    Attributes:
        queue: the broadcasts that wait for `async_receive_broadcast` before the listeners run, or
            for `connect`. None if broadcasts are passed on at once.
    """

    __slots__ = ("_inbox", "queue")

    def __init__(self, connection: Connection, socket: Socket) -> None:
        super().__init__(connection, socket)
        self.queue: EventQueue | Hold | None = None
        self._inbox: Inbox | None = None

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

    # Broadcasts that wait for `connect`

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

    @property
    def unsent(self) -> Unsent | None:
        """The messages that wait for the client; None if none ever has. For any thread."""
        outbox, inbox, hold = self._connection.outbox, self._inbox, self._held()
        holds = [*self._other_holds(), *([] if hold is None else [hold])]
        if inbox is not None:
            return unsent_of(outbox, inbox, [*holds, *inbox.holds])
        return unsent_of(outbox, outbox, holds) if holds else outbox.unsent

    def _other_holds(self) -> Collection[Hold]:
        """Further queues of a subclass. For any thread."""
        return ()

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
