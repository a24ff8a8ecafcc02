"""What every middleware here does: identify, refuse or tag, and watch while the socket is open."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from ..conf import load_config
from ..connection.handshake import deny, report_error
from ..errors import ThreadError
from ..log import LogThrottle, shown, whereabouts
from ..runtime.hooks import call_hook
from ..url import BrokerOptions
from .signals import connect_signals
from .tags import TAGS
from .watch import Watched, watching

__all__ = [
    "AppMissing",
    "AsgiApplication",
    "AuthMiddleware",
    "Identity",
    "Refused",
    "in_thread",
    "refuse",
]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)
_failures = LogThrottle(logger, BrokerOptions.log_interval_seconds, burst=5)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApplication = Callable[[Any, Any, Any], Awaitable[Any]]


class AppMissing(ImproperlyConfigured):
    """A middleware needs apps that are not in INSTALLED_APPS.

    Attributes:
        apps: their names.
    """

    def __init__(self, middleware: str, apps: Sequence[str]) -> None:
        self.apps = tuple(apps)
        names = ", ".join(repr(name) for name in apps)
        super().__init__(
            f"{middleware} needs {names} in INSTALLED_APPS, and then `manage.py migrate`"
        )


class Refused(Exception):
    """The handshake is refused.

    Attributes:
        status: the HTTP status.
        headers: of the answer.
    """

    def __init__(
        self, status: int, reason: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        self.status = status
        self.headers = list(headers)
        super().__init__(reason)


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who a handshake comes from.

    Attributes:
        scope: keys for the scope, "user" among them.
        tags: what the socket is found by, to be closed.
        watched: what has to stay true while it is open.
    """

    scope: Mapping[str, Any]
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    watched: Watched | None = None


class AuthMiddleware:
    """An ASGI application around another one.

    Args:
        app: the application.
        require_user: refuse who is not logged in, instead of passing an `AnonymousUser`.
        session_check_seconds: an open socket is closed at most so long after its session, its
            token or its user has ceased to be valid.
        outage_seconds: sockets that could not be checked for so long are closed with 4503.

    Raises:
        AppMissing: one of `required_apps` is not installed.
    """

    required_apps: Sequence[str] = ("django.contrib.auth", "django.contrib.contenttypes")
    anonymous_status = 403
    anonymous_headers: Sequence[tuple[bytes, bytes]] = ()

    def __init__(
        self,
        app: AsgiApplication,
        *,
        require_user: bool = False,
        session_check_seconds: float = 5.0,
        outage_seconds: float = 600.0,
    ) -> None:
        if not session_check_seconds > 0 or not outage_seconds > 0:
            raise ValueError("session_check_seconds and outage_seconds are numbers over 0")
        self.app = app
        self.require_user = require_user
        self.session_check_seconds = session_check_seconds
        self.outage_seconds = outage_seconds
        self._has_apps = False
        self._require_apps()
        connect_signals()

    def _require_apps(self) -> None:
        """Raise AppMissing; before Django is set up it is not known, and asked again later."""
        from django.apps import apps

        if self._has_apps or not apps.apps_ready:
            return
        missing = [name for name in self.required_apps if not apps.is_installed(name)]
        if missing:
            raise AppMissing(type(self).__name__, missing)
        self._has_apps = True

    async def identify(self, scope: Scope) -> Identity | None:
        """Who it is; None leaves the scope as it is. Raises Refused."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        if scope["type"] != "websocket":
            return await self.app(scope, receive, send)
        scope = dict(scope)
        try:
            self._require_apps()
            identity = await self.identify(scope)
            if identity is not None:
                scope.update(identity.scope)
                scope[TAGS] = {**(scope.get(TAGS) or {}), **identity.tags}
            if self.require_user and not _is_user(scope.get("user")):
                raise Refused(self.anonymous_status, "not logged in", self.anonymous_headers)
        except Refused as exc:
            path, text = shown(scope.get("path")), "refused a websocket to %s: %s"
            key = f"{type(self).__name__} {whereabouts(exc)}"
            _throttle.log(logging.INFO, key, text, path, exc)
            return await refuse(scope, receive, send, exc.status, exc.headers)
        except Exception as exc:
            report_error(scope, exc)
            return await refuse(scope, receive, send, self._failed(exc))
        watched = identity.watched if identity is not None else None
        with contextlib.ExitStack() as stack:
            if watched is not None:
                try:
                    stack.enter_context(watching(watched))
                except ThreadError as exc:
                    # Unwatched, it would stay open after a logout.
                    return await refuse(scope, receive, send, self._failed(exc))
            return await self.app(scope, receive, send)

    def _failed(self, exc: Exception) -> int:
        """Log that it is not known who this is, and the status that says so."""
        name = type(self).__name__
        if isinstance(exc, ThreadError) or _is_outage(exc):
            _throttle.log(logging.ERROR, name, "%s: refused with 503: %r", name, exc)
            return 503
        key = f"{name} {whereabouts(exc)}"
        _failures.log(logging.ERROR, key, "%s failed: refused with 500", name, exc_info=exc)
        return 500


def _is_user(user: Any) -> bool:
    return user is not None and bool(getattr(user, "is_authenticated", True))


def _is_outage(exc: Exception) -> bool:
    from django.db import Error

    return isinstance(exc, (Error, OSError)) or "redis" in type(exc).__module__


async def in_thread(call: Callable[..., Any], *args: Any) -> Any:
    """Run an `async def` here and a `def` on a worker thread, with care for its connections."""
    return await call_hook(load_config().settings, call, *args, handshake=True)


async def refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Refuse the handshake in the place of the application."""
    event = await receive()
    if event["type"] == "websocket.connect":
        await deny(scope, send, status, headers)
