"""Sending to one client within the bounds of its outbox, and the end of a client that is too slow.

If the outbox is full, the overflow policy of the class decides.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..delivery.events import OVERFLOW, Gap, Presence
from ..delivery.flow_control import Backlog
from ..delivery.hold import ClientEvent
from ..delivery.message import Delivery
from ..log import LogThrottle
from ..url import BrokerOptions
from .close_codes import NO_CODE, TRY_AGAIN
from .outbox import Item
from .overflow import CLOSE, Overflow
from .socket_class import Socket
from .tasks import spawn

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["ClientSender"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)


class ClientSender:
    """The owner of the outbox of one connection."""

    __slots__ = ("_connection", "_overflow", "_slow", "_socket")

    def __init__(self, connection: Connection, socket: Socket) -> None:
        self._connection = connection
        self._socket = socket
        self._overflow: Overflow | None = None
        self._slow = False

    # Broadcasts

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

    # Called by the outbox

    @property
    def takes_whole_runs(self) -> bool:
        """See `Sender`. A policy that drops messages must be able to tell of the hole."""
        return self._socket.overflow == CLOSE or not self._tells_gaps

    @property
    def _tells_gaps(self) -> bool:
        """Somebody is told of a gap: the class's own hook, or a client of the protocol."""
        return self._connection.definition.own_gap_hook

    def new_backlog(self) -> Backlog:
        """Make the queue for messages that wait for a client that reads slowly."""
        socket, hub = self._socket, self._connection.shared_hub()
        return Backlog(socket.outbox_messages, socket.outbox_bytes, hub.congestion)

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

    # Clients that read too slowly

    @property
    def outbox_bytes(self) -> int:
        """See `HoldOwner`."""
        return self._socket.outbox_bytes

    @property
    def outbox_messages(self) -> int:
        """See `HoldOwner`."""
        return self._socket.outbox_messages

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
