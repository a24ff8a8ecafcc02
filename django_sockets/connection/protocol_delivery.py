"""The delivery of broadcasts to a client of the protocol `django-sockets.v1`.

A gap becomes a frame. What arrives on a channel while the client subscribes to it waits until the
client has the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING

from ..delivery.events import HISTORY, OVERFLOW, Gap, Presence
from ..delivery.hold import ClientEvent, Hold
from ..delivery.message import Delivery
from ..delivery.presence_frames import list_frames
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

    __slots__ = ("_arrivals", "_handled", "_watched")

    def __init__(self, connection: Connection, socket: Socket) -> None:
        super().__init__(connection, socket)
        self._arrivals: dict[str, Hold] = {}
        self._handled: Delivery | None = None
        self._watched: frozenset[str] = frozenset()

    # New subscriptions of the client

    def arrive(self, names: Iterable[str], watched: Set[str]) -> Arrival:
        """Let the messages of new channels wait, and those of channels with presence."""
        hub = self._connection.shared_hub()
        owned = hub.channels_of(self)
        hold = Hold(self)
        new = {name: hold for name in names if name in watched or name not in owned}
        self._arrivals.update(new)
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
        if hold is not None:
            hold.put(change)
        elif self._can_push(change):
            for frame in change.client_frames:
                self._push(frame)
        else:
            super().on_presence(change)

    def _can_push(self, change: Presence) -> bool:
        """Whether the frames of a change can go straight to the outbox, without an inbox."""
        return (
            change.channel in self._watched
            and self.queue is None
            and self._inbox is None
            and self.takes_whole_runs
            and not super().tells_presence(change)
        )

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

    def _other_holds(self) -> Collection[Hold]:
        return set(self._arrivals.copy().values())

    def _unseal(self) -> None:
        if not self._arrivals:
            super()._unseal()

    # Presence

    def watch(self, names: Iterable[str]) -> list[str]:
        """Tell the client of changes of the members of channels. Returns the new ones of them."""
        new = [name for name in names if name not in self._watched]
        self._watched = self._watched.union(new)
        return new

    def unwatch(self, names: Iterable[str]) -> None:
        """Tell the client no changes of members of these channels any more."""
        if self._watched:
            self._watched = self._watched.difference(names)

    def tells_presence(self, change: Presence) -> bool:
        return change.channel in self._watched or super().tells_presence(change)

    async def _tell_presence(self, change: Presence) -> None:
        if change.channel in self._watched:
            for frame in change.client_frames:
                await self._send_on(frame)
        if super().tells_presence(change):
            await super()._tell_presence(change)

    async def _tell_members(self, channel: str) -> None:
        """Send the whole list, because changes of it were dropped."""
        members = await self._connection.shared_hub().presence(channel)
        for frame in list_frames(channel, members, is_whole=True):
            await self._send_on(frame)

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
        if gap.reason == OVERFLOW:  # After any other gap, the hub finds the difference.
            for name in gap.channels:
                if name in self._watched:
                    await self._tell_members(name)
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
        self.unwatch(names)
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
        self, names: list[str], since: Mapping[str, str], replay: int, presence: bool
    ) -> dict[str, Recovery]:
        """Subscribe. The answer tells what could not be recovered, and no gap does."""
        new = self._delivery.watch(names) if presence else []
        try:
            recoveries = await self._connection.add(names, since or None, replay, presence)
        except BaseException:
            self._delivery.unwatch(new)
            raise
        broken = [name for name in since if not recoveries[name].recovered]
        if broken:
            self._hold.forget_gap(broken, HISTORY)
        return dict(recoveries)

    async def release(self) -> None:
        await self._delivery.arrived(self._hold)

    def cancel(self) -> None:
        self._hold.close()
        self._delivery.forget_arrival(self._hold)
