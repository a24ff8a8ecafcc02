"""The delivery of broadcasts to one client. The hub has it as a subscriber."""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any

from ..delivery.events import HISTORY, EventQueue, Gap, Presence
from ..delivery.hold import NOT_YET
from ..delivery.message import Delivery
from ..delivery.send_queue import SendQueue
from ..errors import CallError, SubscribeError
from ..history import Recovery
from .overflow import Inbox
from .waiting_events import WaitingEvents

__all__ = ["ClientDelivery"]


class ClientDelivery(WaitingEvents):
    """The subscriber of one connection."""

    __slots__ = ()

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
