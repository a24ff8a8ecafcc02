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

__all__ = [
    "EXPLAIN",
    "FORBIDDEN",
    "deny",
    "explain_refusal",
    "origin_refusal",
    "refusal",
    "report_error",
]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)
_failures = LogThrottle(logger, BrokerOptions.log_interval_seconds, burst=5)

FORBIDDEN = 403
"""HTTP status (RFC 9110, section 15.5.4)."""
ERRORS = "django_sockets.errors"
"""Key of the scope under which the test kit passes a callable that gets each error."""


EXPLAIN = "django_sockets.explain"
"""Key of the scope: if it is true, the reason of every refusal is logged, and not only of some."""


def explain_refusal(
    scope: Mapping[str, Any],
    throttle: LogThrottle,
    level: int,
    key: str,
    reason: object,
    status: int,
) -> None:
    """Log why a handshake is refused.

    Args:
        throttle: of the calling module.
        key: the kind of the refusal; see `LogThrottle.log`.
        status: the HTTP status of the refusal.
    """
    path = scope.get("path")
    extra = {"path": path, "reason": reason, "status": status}
    text = "refused a websocket to %s: %s"
    if scope.get(EXPLAIN):
        logger.log(level, text, shown(path), reason, extra=extra)
    else:
        throttle.log(level, key, text, shown(path), reason, extra=extra)


def origin_refusal(
    scope: Mapping[str, Any], allowed_origins: Sequence[str], allowed_hosts: Sequence[str] = ()
) -> int | None:
    """The HTTP status to refuse the handshake with because of its Origin, or None."""
    problem = origin_problem(scope, allowed_origins, allowed_hosts)
    if problem is None:
        return None
    explain_refusal(scope, _throttle, logging.WARNING, "origin", problem, FORBIDDEN)
    return FORBIDDEN


async def refusal(scope: Mapping[str, Any], authorize: Callable[[], Awaitable[Any]]) -> int | None:
    """The HTTP status to refuse the handshake with because of `authorize`, or None.

    Args:
        authorize: the class's hook.
    """
    try:
        allowed = await authorize()
    except Reject as exc:
        key = f"authorize {whereabouts(exc)}"
        explain_refusal(scope, _throttle, logging.INFO, key, shown(str(exc)), exc.status)
        return exc.status
    except Exception as exc:
        report_error(scope, exc)
        path = scope.get("path")
        text, key = "authorize failed: refused a websocket to %s", f"authorize {whereabouts(exc)}"
        extra = {"path": path, "status": FORBIDDEN}
        _failures.log(logging.ERROR, key, text, shown(path), exc_info=exc, extra=extra)
        return FORBIDDEN
    if allowed is None or allowed:
        return None
    key, reason = "authorize False", "authorize returned False"
    explain_refusal(scope, _throttle, logging.INFO, key, reason, FORBIDDEN)
    return FORBIDDEN


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
