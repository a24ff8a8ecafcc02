"""The delivery of broadcasts to a client of the protocol `django-sockets.v1`.

A gap becomes a frame. What arrives on a channel while the client subscribes to it waits until the
client has the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..delivery.events import HISTORY, Gap, Presence
from ..delivery.hold import ClientEvent, Hold
from ..delivery.message import Delivery
from ..delivery.send_queue import SendQueue
from ..history import Recovery
from ..protocol.frames import gap_frame
from .client_delivery import ClientDelivery
from .outbox import Item

if TYPE_CHECKING:
    from .connection import Connection
    from .socket_class import Socket

__all__ = ["Arrival", "ProtocolDelivery"]


class ProtocolDelivery(ClientDelivery):
    """The subscriber of a connection whose client speaks the protocol."""

    __slots__ = ("_arrivals", "_handled")

    def __init__(self, connection: Connection, socket: Socket) -> None:
        super().__init__(connection, socket)
        self._arrivals: dict[str, Hold] = {}
        self._handled: Delivery | None = None

    # New subscriptions of the client

    def arrive(self, names: Iterable[str]) -> Arrival:
        """Let the messages of new channels wait."""
        hub = self._connection.shared_hub()
        owned = hub.channels_of(self)
        hold = Hold(self)
        self._arrivals.update({name: hold for name in names if name not in owned})
        if self._arrivals:
            self._connection.outbox.seal()  # The hub must ask `on_delivery`.
        return Arrival(self._connection, self, hold)

    async def arrived(self, hold: Hold) -> None:
        """Pass on the messages that wait, and let the later ones pass."""
        connection = self._connection
        congestion = connection.shared_hub().congestion
        await hold.hand_over(self._go_on, connection.outbox, congestion)
        self.forget_arrival(hold)

    def forget_arrival(self, hold: Hold) -> None:
        """Let the later messages of its channels pass."""
        self._arrivals = {name: one for name, one in self._arrivals.items() if one is not hold}
        self._unseal()

    def _go_on(self, event: ClientEvent) -> None:
        if isinstance(event, Gap):
            super().on_gap(event.channels, event.reason)
        elif isinstance(event, Presence):
            super().on_presence(event)
        else:
            super().on_delivery(event)

    def on_delivery(self, delivery: Delivery) -> None:
        hold = self._arrivals.get(delivery.channel) if self._arrivals else None
        if hold is None:
            super().on_delivery(delivery)
        else:
            hold.put(delivery)

    def on_presence(self, change: Presence) -> None:
        hold = self._arrivals.get(change.channel)
        if hold is None:
            super().on_presence(change)
        else:
            hold.put(change)

    def on_gap(self, channels: Sequence[str], reason: str) -> None:
        waiting: dict[Hold, list[str]] = {}
        others = []
        for name in channels:
            hold = self._arrivals.get(name)
            if hold is None:
                others.append(name)
            else:
                waiting.setdefault(hold, []).append(name)
        for hold, names in waiting.items():
            hold.on_gap(names, reason)
        if others:
            super().on_gap(others, reason)

    def _unseal(self) -> None:
        if not self._arrivals:
            super()._unseal()

    # The differences to a client without the protocol

    def _direct(self) -> SendQueue | None:
        # The fan-out awaits `send` with the event for clients without the protocol.
        return None if self._connection.outbox.write is None else super()._direct()

    def _item_of(self, delivery: Delivery) -> Item:
        return delivery.client_event() if self._connection.outbox.write is None else delivery

    @property
    def _tells_gaps(self) -> bool:
        return True

    async def _tell_gap(self, gap: Gap) -> None:
        outbox = self._connection.outbox
        await outbox.run(outbox.message(gap_frame(gap.channels, gap.reason), is_text=True))
        if self._connection.definition.own_gap_hook:
            await super()._tell_gap(gap)

    async def take(self, event: ClientEvent) -> None:
        self._handled = event if isinstance(event, Delivery) else None
        try:
            await super().take(event)
        finally:
            self._handled = None

    def position_in(self, channel: str) -> str | None:
        """The position of the broadcast that a hook of the class handles now."""
        handled = self._handled
        return handled.position if handled is not None and handled.channel == channel else None

    async def remove(self, names: list[str]) -> None:
        """Unsubscribe from channels, and tell the client of those to which it has subscribed."""
        await super().remove(names)
        session = self._connection.session
        if session is not None:
            session.subscriptions.removed(names)

    async def leave(self, names: list[str]) -> None:
        """Unsubscribe from channels for the session."""
        await super().remove(names)

    def discard_held(self) -> None:
        super().discard_held()
        for hold in set(self._arrivals.values()):
            hold.close()


class Arrival:
    """New subscriptions of one client; see `protocol.subscriptions`."""

    __slots__ = ("_connection", "_delivery", "_hold")

    def __init__(self, connection: Connection, delivery: ProtocolDelivery, hold: Hold) -> None:
        self._connection = connection
        self._delivery = delivery
        self._hold = hold

    async def add(
        self, names: list[str], since: Mapping[str, str], replay: int
    ) -> dict[str, Recovery]:
        """Subscribe. The answer tells what could not be recovered, and no gap does."""
        recoveries: Any = await self._connection.add(names, since or None, replay)
        broken = [name for name in since if not recoveries[name].recovered]
        if broken:
            self._hold.forget_gap(broken, HISTORY)
        return dict(recoveries)

    async def release(self) -> None:
        await self._delivery.arrived(self._hold)

    def cancel(self) -> None:
        self._hold.close()
        self._delivery.forget_arrival(self._hold)
