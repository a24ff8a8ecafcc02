"""OriginMiddleware: the Origin check of `as_asgi`, for any application and before any query."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..connection.handshake import FORBIDDEN, explain_refusal
from ..connection.origin import check_allowed_hosts, check_origins, origin_problem
from ..connection.refusals import refuse
from ..log import LogThrottle
from ..url import BrokerOptions
from .base import AsgiApplication, Receive, Scope, Send
from .refusals import ORIGIN_PASSED

__all__ = ["OriginMiddleware"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)


class OriginMiddleware:
    """Refuses a handshake from a page of another site with 403.

    `as_asgi` of a socket class does the same check. Use this class around other ASGI applications,
    or to refuse a handshake before its session is loaded.

    Args:
        app: the ASGI application.
        allowed_origins: other sites that may connect, besides those in `CSRF_TRUSTED_ORIGINS`.
        allowed_hosts: see `BaseSocketServer.allowed_hosts`.

    Raises:
        ConfigurationError: one of them is not a list.
    """

    def __init__(
        self,
        app: AsgiApplication,
        allowed_origins: Sequence[str] = (),
        allowed_hosts: Sequence[str] = (),
    ) -> None:
        check_origins("allowed_origins", allowed_origins)
        check_allowed_hosts("allowed_hosts", allowed_hosts)
        self.app = app
        self.allowed_origins = tuple(allowed_origins)
        self.allowed_hosts = tuple(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        if scope["type"] == "websocket":
            problem = origin_problem(scope, self.allowed_origins, self.allowed_hosts)
            if problem is not None:
                explain_refusal(scope, _throttle, logging.WARNING, "origin", problem, FORBIDDEN)
                return await refuse(scope, receive, send, FORBIDDEN)
            scope = {**scope, ORIGIN_PASSED: True}
        return await self.app(scope, receive, send)
