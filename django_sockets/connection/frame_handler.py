"""Handles one frame of a client: checks the rate limit, decodes it, and calls its handler."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from ..decoding import LARGE_CHARACTERS
from ..log import LogThrottle, shown
from ..protocol.session import CLIENT_FRAME
from ..typed import message_id
from ..url import BrokerOptions
from .close_codes import IDLE, POLICY
from .limits import TokenBucket
from .tasks import spawn

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["IdleTimer", "handle_frame", "may_send", "note_undecoded", "too_often"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)


async def handle_frame(connection: Connection, event: MutableMapping[str, Any]) -> None:
    """Call the handler of a `websocket.receive` event. Raises the errors of the handler."""
    if event["type"] != "websocket.receive":
        if event["type"] == CLIENT_FRAME and connection.session is not None:
            await connection.session.handle(event["frame"])
            return
        text = "ignored an ASGI event of type %s"
        _throttle.log(
            logging.WARNING,
            "event",
            text,
            shown(event["type"]),
            extra={"socket": type(connection.socket).__name__, "reason": event["type"]},
        )
        return
    socket = connection.socket
    if socket.rate_limit_per_second is not None and not may_send(connection):
        await too_often(connection)
        return
    frame = event.get("text")
    if frame is None:
        frame = event.get("bytes") or b""
    if len(frame) > LARGE_CHARACTERS:
        await asyncio.sleep(0)  # Other tasks may run between two frames that take long to decode.
    try:
        name, args = connection.definition.dispatch.read(frame, socket.ws_decoder)
    except Exception as exc:
        note_undecoded(type(socket).__name__, exc)
        if socket.answer_invalid:
            connection.invalid_id = message_id(frame, socket.ws_decoder)
        await connection.call(socket.decode_error, exc)
        return
    await connection.call(getattr(socket, name), *args)


async def too_often(connection: Connection) -> None:
    """Close the connection, because the client exceeds its rate limit."""
    connection.note("closed_rate_limit", "closed with 1008: the client sends too often", POLICY)
    await connection.socket.async_close(POLICY)


def may_send(connection: Connection) -> bool:
    """Count a frame of the client; False if it exceeds the rate limit."""
    now = connection.home.time()
    if connection.rate is None:
        socket = connection.socket
        per_second = socket.rate_limit_per_second or math.inf
        burst = socket.rate_limit_burst or max(1.0, per_second)
        connection.rate = TokenBucket(per_second, burst, now)
    return connection.rate.take(now)


def note_undecoded(name: str, exc: Exception) -> None:
    """Log a frame or message that could not be decoded.

    Args:
        name: of the socket class.
    """
    # The error may quote the client, so it is escaped and shortened.
    text = "%s: a frame of the client could not be decoded: %s: %.300r"
    _throttle.log(
        logging.INFO,
        f"{name} decode",
        text,
        name,
        type(exc).__name__,
        str(exc),
        extra={"socket": name, "reason": exc},
    )
    logger.debug(
        "%s: a frame of the client could not be decoded", name, exc_info=exc, extra={"socket": name}
    )


class IdleTimer:
    """Closes a socket whose client sends nothing for `idle_timeout_seconds`.

    While a handler runs, the client is not idle.
    """

    __slots__ = ("_connection", "_timer")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    def _look(self) -> None:
        connection = self._connection
        limit_seconds = connection.socket.idle_timeout_seconds
        if limit_seconds is None or connection.closing:
            return
        frames = connection.receive_loop
        quiet = 0.0 if frames.busy else connection.home.time() - frames.heard_at
        if quiet >= limit_seconds:
            spawn(connection.close(IDLE))
            connection.note("closed_idle", "closed with 4408: the client sends nothing", IDLE)
        else:
            self._timer = connection.home.call_later(limit_seconds - quiet, self._look)

    def cancel(self) -> None:
        """Stop, because the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
