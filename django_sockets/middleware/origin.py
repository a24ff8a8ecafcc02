"""OriginMiddleware: the Origin check of `as_asgi`, for any application and before any query."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..origin import origin_problem
from .base import AsgiApplication, Receive, Scope, Send, refuse

__all__ = ["OriginMiddleware"]

logger = logging.getLogger("django_sockets")


class OriginMiddleware:
    """Refuses, with 403, a handshake from a page of another site.

    `as_asgi` of a socket class does that by itself. This is for other ASGI applications, and to
    refuse before the session is loaded.

    Args:
        app: the ASGI application.
        allowed_origins: of other sites that may connect, beside `CSRF_TRUSTED_ORIGINS`.
    """

    def __init__(self, app: AsgiApplication, allowed_origins: Sequence[str] = ()) -> None:
        self.app = app
        self.allowed_origins = tuple(allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        if scope["type"] == "websocket":
            problem = origin_problem(scope, self.allowed_origins)
            if problem is not None:
                logger.warning("refused a websocket to %s: %s", scope.get("path"), problem)
                return await refuse(scope, receive, send, 403)
        return await self.app(scope, receive, send)
