"""The opening of one connection: the decision to accept it, the accept, and the hook `connect`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import TYPE_CHECKING, Any

from ..delivery.eager import Late, until_late
from ..errors import Reject
from ..log import LogThrottle
from ..observer import seam
from ..tracer import Span, tracing
from ..url import BrokerOptions
from .close_codes import GOING_AWAY
from .handshake import FORBIDDEN, deny, explain_refusal, origin_refusal, refusal
from .observed import report_handshake
from .protocol_client import speak_protocol
from .refusals import accept_and_close
from .tasks import spawn

if TYPE_CHECKING:
    from .connection import Connection
    from .socket_class import Socket

__all__ = ["admit", "handle_connect"]

_throttle = LogThrottle(logging.getLogger("django_sockets"), BrokerOptions.log_interval_seconds)

Event = MutableMapping[str, Any]
Send = Callable[[Event], Awaitable[None]]

UNAVAILABLE = 503
"""HTTP status (RFC 9110, section 15.6.4)."""


async def admit(connection: Connection) -> bool:
    """Begin the handshake of an ASGI server; False if it was refused.

    If it returns True, the caller awaits `Connection.serve` next, which sends the accept.
    """
    receive, send = connection.asgi_receive, connection.asgi_send
    if receive is None or send is None:
        raise TypeError("an ASGI application needs receive and send")
    event = await receive()
    if event["type"] != "websocket.connect":
        return False
    span = None
    if (tracer := tracing.tracer) is not None:
        span = tracer.handshake(connection.socket.scope, type(connection.socket))
    if span is None:
        return await _admit(connection, event, send, None)
    with span:
        return await _admit(connection, event, send, span)


async def _admit(connection: Connection, event: Event, send: Send, span: Span | None) -> bool:
    observer = seam.observer
    began = 0.0 if observer is None else time.perf_counter()
    socket = connection.socket
    connection.outbox.hold()
    offered = socket.scope.get("subprotocols")
    try:
        if offered:
            speak_protocol(connection, offered)
        connections = connection.shared_hub().connections
    except BaseException:
        if observer is not None or span is not None:
            report_handshake(observer, span, type(socket), began, None, admitted=False)
        raise
    if connections.draining:
        connection.count("refused_draining")
        reason = "the server shuts down"
        explain_refusal(socket.scope, _throttle, logging.INFO, reason, reason, UNAVAILABLE)
        if observer is not None or span is not None:
            report_handshake(observer, span, type(socket), began, UNAVAILABLE, admitted=False)
        await deny(socket.scope, send, UNAVAILABLE)
        return False
    connections.add(connection)
    status: int | None = None
    admitted = readable = False
    try:
        if connection.has_tags or (
            type(socket).authorize is not connection.definition.base.authorize
        ):
            status = origin_refusal(socket.scope, socket.allowed_origins, socket.allowed_hosts)
            if status is None:
                status, readable = await _in_time(connection, _decide(connection))
        else:
            status = origin_refusal(socket.scope, socket.allowed_origins, socket.allowed_hosts)
        closing = connection.closing  # The hook may have closed it.
        if closing and connection.shared_hub().connections.draining:
            status = UNAVAILABLE
        if status is not None or closing:
            if status is None:
                status, reason = FORBIDDEN, "authorize closed it"
                explain_refusal(socket.scope, _throttle, logging.INFO, reason, reason, status)
            if connection.session is not None and readable and 400 <= status < 500:
                await accept_and_close(send, connection.subprotocol, 4000 + status)
            else:
                await deny(socket.scope, send, status)
        else:
            connection.receive_loop.push(event)
            admitted = True
    finally:
        if observer is not None or span is not None:
            report_handshake(observer, span, type(socket), began, status, admitted=admitted)
        if not admitted:
            if connection.session is not None:
                connection.session.end()
            connection.leave_tags()
            connections.discard(connection)
    return admitted


async def _decide(connection: Connection) -> tuple[int | None, bool]:
    """The HTTP status to refuse with, or None after the socket has joined its tags.

    Returns:
        The status, and whether a client of the protocol is told. If the hook has failed, it is not
        told: it then tries again, as after a server error.
    """
    socket = connection.socket
    has_failed = False

    async def authorize() -> Any:
        nonlocal has_failed
        try:
            return await connection.call(socket.authorize)
        except Reject:
            raise
        except Exception:
            has_failed = True
            raise

    plain = connection.session is None
    hook = (lambda: connection.call(socket.authorize)) if plain else authorize
    status = await refusal(socket.scope, hook)
    if status is None and not connection.closing:
        await connection.join_tags()
    return status, not has_failed


async def _in_time(
    connection: Connection, decision: Coroutine[Any, Any, tuple[int | None, bool]]
) -> tuple[int | None, bool]:
    task = asyncio.ensure_future(decision)
    try:
        await asyncio.wait([task], timeout=connection.socket.handshake_timeout_seconds)
        if task.done():
            return task.result()
    finally:
        task.cancel()
    connection.cancel_thread_call()
    connection.note("handshake_timeouts", "refused a handshake: authorize takes too long")
    return UNAVAILABLE, False


async def handle_connect(connection: Connection) -> None:
    """Send the accept, call `connect`, and then release the broadcasts that wait for it."""
    socket, delivery, outbox = connection.socket, connection.delivery, connection.outbox
    accept: dict[str, Any] = {"type": "websocket.accept"}
    subprotocol = connection.subprotocol or _agreed_subprotocol(socket)
    if subprotocol is not None:
        accept["subprotocol"] = subprotocol
    sending = outbox.accept if outbox.held else connection.send_item
    try:
        await until_late(sending(accept), socket.handshake_timeout_seconds)
    except Late:
        text = "gave a client up that does not take the accept"
        connection.note("handshake_timeouts", text)
        connection.end(GOING_AWAY)
        return
    if connection.session is not None:
        connection.session.begin()
    if delivery.queue is not None:
        outbox.seal()  # The hub must ask `on_delivery` until the hold is over.
    known = connection.copy_of_tags()
    try:
        try:
            await connection.call(socket.connect)
        finally:
            if connection.copy_of_tags() != known:
                await connection.join_tags()
    except Exception as exc:
        await connection.failed(exc)
    if delivery.queue is None:
        if connection.session is not None:
            connection.session.ready()
    elif connection.calls_scheduled:
        spawn(_release_after_calls(connection))
    elif not delivery.release_empty():
        await delivery.release()


async def _release_after_calls(connection: Connection) -> None:
    """Release when the plain calls that `async def connect` has made are done."""
    await connection.calls.awaited(connection.delivery.release)


def _agreed_subprotocol(socket: Socket) -> str | None:
    """The class's subprotocol; if the client did not offer it, the one middleware chose."""
    agreed: str | None = socket.scope.get("django_sockets.subprotocol")
    if agreed is None or socket.subprotocol in (socket.scope.get("subprotocols") or ()):
        return socket.subprotocol
    return agreed
