"""The decision whether a handshake is refused, and the answer to the server."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from ..errors import Reject
from ..log import LogThrottle, shown, whereabouts
from ..url import BrokerOptions
from .close_codes import NORMAL
from .origin import origin_problem

__all__ = ["FORBIDDEN", "deny", "origin_refusal", "refusal", "report_error"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)
_failures = LogThrottle(logger, BrokerOptions.log_interval_seconds, burst=5)

FORBIDDEN = 403
"""HTTP status (RFC 9110, section 15.5.4)."""
ERRORS = "django_sockets.errors"
"""Key of the scope under which the test kit passes a callable that gets each error."""


def origin_refusal(
    scope: Mapping[str, Any], allowed_origins: Sequence[str], allowed_hosts: Sequence[str] = ()
) -> int | None:
    """The HTTP status to refuse the handshake with because of its Origin, or None."""
    problem = origin_problem(scope, allowed_origins, allowed_hosts)
    if problem is None:
        return None
    path = shown(scope.get("path"))
    _throttle.log(logging.WARNING, "origin", "refused a websocket to %s: %s", path, problem)
    return FORBIDDEN


async def refusal(scope: Mapping[str, Any], authorize: Callable[[], Awaitable[Any]]) -> int | None:
    """The HTTP status to refuse the handshake with because of `authorize`, or None.

    Args:
        authorize: the class's hook.
    """
    try:
        allowed = await authorize()
    except Reject as exc:
        _note_refusal(scope, whereabouts(exc), shown(str(exc)))
        return exc.status
    except Exception as exc:
        report_error(scope, exc)
        path = shown(scope.get("path"))
        text = "authorize failed: refused a websocket to %s"
        _failures.log(logging.ERROR, f"authorize {whereabouts(exc)}", text, path, exc_info=exc)
        return FORBIDDEN
    if allowed is None or allowed:
        return None
    _note_refusal(scope, "False", "authorize returned False")
    return FORBIDDEN


def _note_refusal(scope: Mapping[str, Any], kind: str, reason: str) -> None:
    path, text = shown(scope.get("path")), "refused a websocket to %s: %s"
    _throttle.log(logging.INFO, f"authorize {kind}", text, path, reason)


def report_error(scope: Mapping[str, Any], exc: Exception) -> None:
    """Pass an error of the application's code to the test kit, if it runs the application."""
    report = scope.get(ERRORS)
    if report is not None:
        report(exc)


async def deny(
    scope: Mapping[str, Any],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    status: int,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Refuse a websocket's handshake, after its `websocket.connect` was received.

    Servers with the denial-response extension (ASGI websocket spec 2.3) answer with `status`. Other
    servers turn a close before the accept into an HTTP 403.
    """
    if "websocket.http.response" in (scope.get("extensions") or {}):
        start = {"type": "websocket.http.response.start", "status": status}
        await send({**start, "headers": list(headers)})
        await send({"type": "websocket.http.response.body", "body": b""})
    else:
        await send({"type": "websocket.close", "code": NORMAL})
