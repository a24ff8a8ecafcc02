"""Closes that tell a client of the protocol `django-sockets.v1` what to do afterwards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..protocol.frames import bye_frame
from .close_codes import reconnection

__all__ = ["accept_and_close", "bye_payload"]

Event = MutableMapping[str, Any]


def bye_payload(code: int, *, refused: bool = False) -> bytes:
    """The last frame before a close with this code.

    Args:
        refused: the handshake is refused, so that a new one would be refused, too.
    """
    again, after_seconds = (False, (0.0, 0.0)) if refused else reconnection(code)
    return bye_frame(code, again, after_seconds)


async def accept_and_close(
    receive: Callable[[], Awaitable[Event]] | None,
    send: Callable[[Event], Awaitable[None]],
    subprotocol: str | None,
    code: int,
) -> None:
    """Refuse a handshake so that a browser learns the reason: accept it, and close it at once.

    Use it only after the Origin was checked. Otherwise a page of another site could find out
    whether its visitor is logged in.

    Args:
        receive: None if the connect event was received already.
        subprotocol: the version of the protocol.
        code: the close code: 4000 plus the HTTP status of the refusal.
    """
    if receive is not None and (await receive())["type"] != "websocket.connect":
        return
    await send({"type": "websocket.accept", "subprotocol": subprotocol})
    bye = bye_payload(code, refused=True).decode()
    await send({"type": "websocket.send", "text": bye})
    await send({"type": "websocket.close", "code": code})
