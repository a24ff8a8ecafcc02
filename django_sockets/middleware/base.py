"""The base of the middleware: identify the user, refuse or tag the socket, watch it while open."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from ..conf import load_config
from ..connection.asgi import Receive, Send
from ..connection.close_codes import UNAUTHORIZED
from ..connection.handshake import explain_refusal, report_error
from ..connection.refusals import handshake_began, refuse, report_failure
from ..errors import ThreadError
from ..log import LogThrottle, whereabouts
from ..runtime.hooks import call_hook, call_in_thread
from ..url import BrokerOptions
from .refusals import readable_refusal
from .signals import connect_signals
from .tags import TAGS
from .watch import Watched, watching

__all__ = [
    "AppMissing",
    "AsgiApplication",
    "AuthMiddleware",
    "Identity",
    "Receive",
    "Refused",
    "Scope",
    "Send",
    "call_in_handshake",
]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)
_failures = LogThrottle(logger, BrokerOptions.log_interval_seconds, burst=5)

Scope = MutableMapping[str, Any]
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
        headers: the headers of the response.
        is_login_missing: the client has no login. Clients of the protocol `django-sockets.v1` are
            told with 4401, whatever the status is.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
        *,
        is_login_missing: bool = False,
    ) -> None:
        self.status = status
        self.is_login_missing = is_login_missing
        self.headers = list(headers)
        super().__init__(reason)


@dataclasses.dataclass(frozen=True)
class Identity:
    """The user of a handshake.

    Attributes:
        scope: keys to add to the ASGI scope, including "user".
        tags: names and values by which `close_sockets` finds the socket.
        watched: what must stay valid while the socket is open.
    """

    scope: Mapping[str, Any]
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    watched: Watched | None = None


class AuthMiddleware:
    """Base of the authentication middleware: an ASGI application that wraps another one.

    Args:
        app: the wrapped application.
        require_user: refuse clients that are not logged in, instead of setting an `AnonymousUser`.
        session_check_seconds: the longest that an open socket outlives its session, token or user.
        outage_seconds: sockets that could not be checked for this long are closed with 4503.

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
        """Raise AppMissing if an app is missing.

        Before Django is set up this does nothing, and the next handshake checks again.
        """
        from django.apps import apps

        if self._has_apps or not apps.apps_ready:
            return
        missing = [name for name in self.required_apps if not apps.is_installed(name)]
        if missing:
            raise AppMissing(type(self).__name__, missing)
        self._has_apps = True

    async def identify(self, scope: Scope) -> Identity | None:
        """Return the user of a handshake; None leaves the scope unchanged. Raises Refused."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        if scope["type"] != "websocket":
            return await self.app(scope, receive, send)
        scope = dict(scope)
        began = handshake_began()
        try:
            self._require_apps()
            identity = await self.identify(scope)
            if identity is not None:
                scope.update(identity.scope)
                scope[TAGS] = {**(scope.get(TAGS) or {}), **identity.tags}
            if self.require_user and not _is_user(scope.get("user")):
                raise Refused(
                    self.anonymous_status,
                    "not logged in",
                    self.anonymous_headers,
                    is_login_missing=True,
                )
        except Refused as exc:
            key = f"{type(self).__name__} {whereabouts(exc)}"
            explain_refusal(scope, _throttle, logging.INFO, key, exc, exc.status)
            subprotocol = readable_refusal(self.app, scope, exc.status)
            code = UNAUTHORIZED if exc.is_login_missing else 4000 + exc.status
            readable = None if subprotocol is None else (subprotocol, code)
            return await refuse(
                scope, receive, send, exc.status, exc.headers, began=began, readable=readable
            )
        except Exception as exc:
            report_error(scope, exc)
            return await refuse(scope, receive, send, self._failed(scope, exc), began=began)
        except BaseException:
            report_failure(began)
            raise
        watched = identity.watched if identity is not None else None
        with contextlib.ExitStack() as stack:
            if watched is not None:
                try:
                    stack.enter_context(watching(watched))
                except ThreadError as exc:
                    # Without the watch the socket would stay open after a logout.
                    return await refuse(scope, receive, send, self._failed(scope, exc), began=began)
            return await self.app(scope, receive, send)

    def _failed(self, scope: Scope, exc: Exception) -> int:
        """Log that the user could not be determined, and return the HTTP status."""
        name = type(self).__name__
        extra = {"middleware": name, "path": scope.get("path"), "reason": exc}
        if isinstance(exc, ThreadError) or _is_outage(exc):
            extra["status"] = 503
            _throttle.log(logging.ERROR, name, "%s: refused with 503: %r", name, exc, extra=extra)
            return 503
        extra["status"] = 500
        key, text = f"{name} {whereabouts(exc)}", "%s failed: refused with 500"
        _failures.log(logging.ERROR, key, text, name, exc_info=exc, extra=extra)
        return 500


def _is_user(user: Any) -> bool:
    return user is not None and bool(getattr(user, "is_authenticated", True))


def _is_outage(exc: Exception) -> bool:
    from django.db import Error

    return isinstance(exc, (Error, OSError)) or "redis" in type(exc).__module__


async def call_in_handshake(hook: Callable[..., Any], *args: Any) -> Any:
    """Call a hook of a middleware during the handshake; see `call_hook`."""
    settings = load_config().settings
    return await call_hook(hook, args, partial(call_in_thread, settings, handshake=True))
