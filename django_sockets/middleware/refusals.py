"""Which refusals of a middleware a client of the protocol may see.

A browser cannot see the HTTP status of a refused handshake. The handshake of such a client is
therefore accepted and closed at once. This tells a page whether its visitor is logged in, so the
page must be one that may open the websocket.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..connection.asgi import AsgiApp
from ..connection.origin import origin_problem
from ..protocol.negotiation import chosen

__all__ = ["ORIGIN_PASSED", "readable_refusal"]

ORIGIN_PASSED = "django_sockets.origin_passed"
"""Key of the ASGI scope that `OriginMiddleware` sets."""


def readable_refusal(app: object, scope: Mapping[str, Any], status: int) -> str | None:
    """The subprotocol with which a handshake is accepted to be closed; None to refuse it by HTTP.

    Args:
        app: the application behind the middleware. If it is a socket class, also inside other
            middleware, its allowed origins count.
        status: the HTTP status of the refusal. Only 400 to 499 are readable: a client repeats a
            handshake that failed for another reason.
    """
    subprotocol = chosen(scope.get("subprotocols") or ())
    if subprotocol is None or not 400 <= status < 500:
        return None
    if not scope.get(ORIGIN_PASSED) and origin_problem(scope, *_allowed_by(app)) is not None:
        return None
    return subprotocol


def _allowed_by(app: object) -> tuple[Collection[str], Collection[str]]:
    """The allowed origins and hosts of the socket class behind a middleware."""
    for _ in range(10):
        if isinstance(app, AsgiApp):
            names = ("allowed_origins", "allowed_hosts")
            origins, hosts = (getattr(app.socket_class, name) for name in names)
            # Each object may have its own value of a property.
            return _list(origins), _list(hosts)
        app = getattr(app, "app", None)
    return (), ()


def _list(value: object) -> Collection[str]:
    return value if isinstance(value, (list, tuple, set, frozenset)) else ()
