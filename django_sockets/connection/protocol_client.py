"""Connects a session of the protocol with its connection: `SessionOwner` for one `Connection`."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Set
from typing import TYPE_CHECKING, Any

from ..codec import encode
from ..delivery.client_payload import CLIENT_PROTOCOL, channel_payload
from ..protocol.negotiation import chosen
from ..protocol.requests import InvalidMessage
from ..protocol.session import Session
from ..protocol.tokens import ChannelToken, Identity
from ..typed import invalid_text
from .close_codes import BAD_DATA
from .frame_handler import may_send, note_undecoded, too_often
from .protocol_delivery import Arrival, ProtocolDelivery
from .subscribe_rights import may_subscribe_hook
from .tasks import spawn

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["ProtocolClient", "speak_protocol"]


def speak_protocol(connection: Connection, offered: Iterable[str]) -> None:
    """Let a connection speak the protocol, if its client offers it and its class can.

    Called before the handshake is accepted and before anything is sent or subscribed to.
    """
    socket = connection.socket
    if socket.ws_encoder is not None or socket.ws_decoder is not None:
        return
    subprotocol = chosen(offered)
    receive = connection.asgi_receive
    if subprotocol is None or receive is None:
        return
    delivery = ProtocolDelivery(connection, socket)
    outbox = connection.outbox
    outbox.owner = connection.delivery = delivery
    outbox.window_bits += CLIENT_PROTOCOL
    connection.session = session = Session(ProtocolClient(connection, delivery), receive)
    connection.subprotocol = subprotocol
    connection.asgi_receive = session.receive
    hello = session.hello()
    outbox.put(outbox.message(hello, is_text=True, compress=False), len(hello))


class ProtocolClient:
    """One connection, as its session uses it."""

    __slots__ = ("_connection", "_delivery", "home")

    def __init__(self, connection: Connection, delivery: ProtocolDelivery) -> None:
        self._connection = connection
        self._delivery = delivery
        self.home = connection.home

    # Facts

    @property
    def session_name(self) -> str:
        return self._connection.own_id().hex()

    @property
    def identity(self) -> Identity:
        connection = self._connection
        tags = connection.copy_of_tags() or {}
        user = connection.socket.scope.get("user")
        if user is not None and getattr(user, "is_authenticated", True):
            pk = getattr(user, "pk", None)
            return Identity(tags.get("user") if pk is None else str(pk), tags.get("session"))
        # Without middleware, an application may have set the tag itself.
        return Identity(tags.get("user") if user is None else None, tags.get("session"))

    @property
    def max_message_bytes(self) -> int:
        return self._connection.socket.max_message_bytes

    @property
    def max_subscriptions(self) -> int:
        return self._connection.socket.max_subscriptions

    @property
    def idle_timeout_seconds(self) -> float | None:
        return self._connection.socket.idle_timeout_seconds

    def is_revoked(self, token: ChannelToken) -> bool:
        return self._connection.is_revoked(token.channel, token.issued_at)

    # Channels

    @property
    def channels(self) -> Set[str]:
        hub = self._connection.hub
        return frozenset() if hub is None else hub.channels_of(self._delivery)

    async def may_subscribe(self, channel: str, presence: bool) -> bool:
        connection = self._connection
        hook = may_subscribe_hook(connection.socket, presence)
        return bool(await connection.call(hook, channel))

    def arrive(self, names: Iterable[str], watched: Set[str]) -> Arrival:
        return self._delivery.arrive(names, watched)

    def unwatch(self, names: Iterable[str]) -> None:
        self._delivery.unwatch(names)

    async def leave(self, names: list[str]) -> None:
        await self._delivery.leave(names)

    async def subscribing_failed(self, exc: Exception) -> None:
        await self._connection.request_failed(exc)

    # Handlers

    def call_handler(self, text: str) -> Coroutine[Any, Any, Any]:
        return self._call_handler(text)

    async def _call_handler(self, text: str) -> Any:
        connection = self._connection
        try:
            name, args = connection.definition.dispatch.read(text, None)
        except Exception as exc:
            note_undecoded(type(connection.socket).__name__, exc)
            raise InvalidMessage(invalid_text(exc)) from exc
        return await connection.call(getattr(connection.socket, name), *args)

    async def handler_failed(self, exc: Exception, *, is_request: bool) -> None:
        if is_request:
            await self._connection.request_failed(exc)
        else:
            await self._connection.failed(exc)

    async def message_invalid(self, exc: InvalidMessage) -> bool:
        connection = self._connection
        hook = connection.socket.decode_error
        if type(connection.socket).decode_error is connection.definition.base.decode_error:
            return False
        cause = exc.__cause__
        await connection.call(hook, cause if isinstance(cause, Exception) else exc)
        return True

    # Frames

    def heard(self) -> bool:
        connection = self._connection
        connection.receive_loop.heard_at = self.home.time()
        if connection.socket.rate_limit_per_second is None or may_send(connection):
            return True
        spawn(too_often(connection))
        return False

    def control(self, payload: bytes) -> None:
        connection = self._connection
        if connection.is_alive and not connection.closing:
            connection.outbox.control(connection.outbox.message(payload, is_text=True))

    def ping(self, payload: bytes) -> None:
        if self._connection.outbox.idle:
            self.control(payload)

    def pong(self, payload: bytes) -> None:
        if not self._connection.outbox.full:
            self.control(payload)

    async def send(self, payload: bytes) -> None:
        outbox = self._connection.outbox
        await self._connection.send_item(outbox.message(payload, is_text=True), len(payload))

    async def send_broadcast(self, channel: str, data: Any) -> None:
        payload, is_text = encode(data)
        payload = channel_payload(channel, payload, is_text, self._delivery.position_in(channel))
        item = self._connection.outbox.message(payload, is_text)
        await self._connection.send_item(item, len(payload))

    def broken(self) -> None:
        spawn(self._connection.close(BAD_DATA))

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        return spawn(work)
