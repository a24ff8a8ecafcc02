"""Refusals of handshakes before `admission` begins, and closes that tell a client the reason."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from ..observer import seam
from ..protocol.frames import bye_frame
from .close_codes import reconnection
from .handshake import deny
from .observed import report_handshake

__all__ = ["accept_and_close", "bye_payload", "handshake_began", "refuse", "report_failure"]

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


def bye_payload(code: int, *, refused: bool = False) -> bytes:
    """The last frame before a close with this code.

    Args:
        refused: the handshake is refused, so that a new one would be refused, too.
    """
    again, after_seconds = (False, (0.0, 0.0)) if refused else reconnection(code)
    return bye_frame(code, again, after_seconds)


async def accept_and_close(send: Send, subprotocol: str | None, code: int) -> None:
    """Refuse a handshake so that a browser learns the reason: accept it, and close it at once.

    Call it after the event `websocket.connect`. Use it only after the Origin was checked. Otherwise
    a page of another site could find out whether its visitor is logged in.

    Args:
        subprotocol: the version of the protocol.
        code: the close code: 4000 plus the HTTP status of the refusal.
    """
    await send({"type": "websocket.accept", "subprotocol": subprotocol})
    bye = bye_payload(code, refused=True).decode()
    await send({"type": "websocket.send", "text": bye})
    await send({"type": "websocket.close", "code": code})


# Handshakes that end before `admission` begins. It reports all others.


def handshake_began() -> float | None:
    """The start of a decision, for `refuse`. None without an observer."""
    return None if seam.observer is None else time.perf_counter()


async def refuse(
    scope: Mapping[str, Any],
    receive: Receive,
    send: Send,
    status: int,
    headers: Sequence[tuple[bytes, bytes]] = (),
    *,
    began: float | None = None,
    readable: tuple[str, int] | None = None,
) -> None:
    """Refuse a handshake that has not reached a socket class, and report it to observers.

    The caller calls no application afterwards, so that the handshake is reported once. Observers
    are told before the client is.

    Args:
        status: the HTTP status.
        headers: the headers of the response.
        began: the result of `handshake_began`. None: the decision took no time.
        readable: the subprotocol and the close code for a client that may learn the reason; see
            `accept_and_close`. None: an answer by HTTP.
    """
    event = await receive()
    if event["type"] != "websocket.connect":
        return
    _report(began, status)
    if readable is not None:
        await accept_and_close(send, *readable)
    else:
        await deny(scope, send, status, headers)


def report_failure(began: float | None, socket: type | None = None) -> None:
    """Report a handshake that was cancelled, or ended by an error, before `admission` began.

    Args:
        socket: the class, if it is known.
    """
    _report(began, None, socket)


def _report(began: float | None, status: int | None, socket: type | None = None) -> None:
    if (observer := seam.observer) is not None:
        if began is None:
            began = time.perf_counter()
        report_handshake(observer, None, socket, began, status, admitted=False)
