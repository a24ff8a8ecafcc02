"""Reports the handshakes and hooks of a connection to observers, and handshakes to their spans."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

from ..errors import NotAllowed, Reject, RequestError
from ..observer import HandshakeEnded, HookCalled, Observer
from ..tracer import Span

__all__ = ["observed_hook", "report_handshake"]

SWITCHING_PROTOCOLS = 101
"""HTTP status of an accepted handshake (RFC 9110, section 15.2.2)."""


async def observed_hook(
    observer: Observer, socket: type, hook: Any, calling: Awaitable[Any]
) -> Any:
    """Await the call of a hook, and report it."""
    started, outcome = time.perf_counter(), "ok"
    try:
        return await calling
    except (NotAllowed, Reject, RequestError):
        outcome = "refused"
        raise
    except BaseException as exc:
        outcome = "cancelled" if isinstance(exc, asyncio.CancelledError) else "error"
        raise
    finally:
        observer.hook_called(
            HookCalled(
                socket=socket,
                hook=getattr(hook, "__name__", type(hook).__name__),
                seconds=time.perf_counter() - started,
                outcome=outcome,
            )
        )


def report_handshake(
    observer: Observer | None,
    span: Span | None,
    socket: type | None,
    began: float,
    status: int | None,
    *,
    admitted: bool,
) -> None:
    """Report the end of a handshake to an observer and to its span.

    Args:
        socket: the class; None if the handshake was refused before its class was known.
        status: the HTTP status of a refusal, or None.
    """
    outcome = "accepted" if admitted else "failed" if status is None else "refused"
    status = SWITCHING_PROTOCOLS if admitted else status
    if span is not None:
        span.outcome(outcome, status)
    if observer is not None:
        observer.handshake_ended(
            HandshakeEnded(
                socket=socket,
                outcome=outcome,
                status=status or 0,
                seconds=time.perf_counter() - began,
            )
        )
