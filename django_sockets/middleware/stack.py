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
    """Wrap an application of websockets: Origin, session, and a token where there is one.

    Args:
        app: the ASGI application, such as `MySocket.as_asgi` or a router.
        token: a token middleware, `DRFTokenAuthMiddleware` or a subclass of
            `BaseTokenAuthMiddleware`; a token counts for more than a session. None for sessions
            alone.
        require_user: refuse who has neither. A page then sees its handshake fail, as with a server
            that is down; one that has to say "log in" accepts, and closes with 4401 in `connect`.
        allowed_origins: check the Origin here, before anything is loaded, and admit these beside
            the application's own. None leaves it to `as_asgi`, which always does.
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
