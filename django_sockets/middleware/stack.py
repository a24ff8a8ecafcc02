"""`secure`: the usual middleware around an application, in the right order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import AsgiApplication
from .origin import OriginMiddleware
from .session import SessionAuthMiddleware

__all__ = ["secure"]


def secure(
    app: AsgiApplication,
    *,
    token: Any = None,
    require_user: bool = False,
    allowed_origins: Sequence[str] | None = None,
    select_related: Sequence[str] = (),
    session_check_seconds: float = 5.0,
    outage_seconds: float = 600.0,
) -> AsgiApplication:
    """Wrap a websocket application in the checks of Origin and session, and optionally of tokens.

    Args:
        app: the ASGI application, such as `MySocket.as_asgi` or a router.
        token: a token middleware, `DRFTokenAuthMiddleware` or a subclass of
            `BaseTokenAuthMiddleware`. A token takes precedence over a session. Default: None,
            sessions only.
        require_user: refuse clients that have neither a session nor a token. A web page then sees
            a failed handshake and cannot tell it from a server that is down, unless its client
            speaks the protocol `django-sockets.v1`: the socket is then closed with 4401.
        allowed_origins: check the Origin before anything is loaded, and accept these origins
            besides the application's own. None leaves the check to `as_asgi`, which always does it.
        select_related: fields of the session's user to load with it.
        session_check_seconds, outage_seconds: see `SessionAuthMiddleware`.
    """
    checks: dict[str, Any] = {
        "session_check_seconds": session_check_seconds,
        "outage_seconds": outage_seconds,
    }
    if token is not None:
        app = token(app, require_user=require_user, **checks)
        require_user = False
    app = SessionAuthMiddleware(app, select_related, require_user=require_user, **checks)
    return app if allowed_origins is None else OriginMiddleware(app, allowed_origins)
