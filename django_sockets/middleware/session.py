"""SessionAuthMiddleware: the user of Django's session cookie."""

from __future__ import annotations

from collections.abc import Sequence

from ..connection.limits import check_list
from .base import AsgiApplication, AuthMiddleware, Identity, Scope, call_in_handshake
from .stores import load_session, surviving
from .tags import digest
from .users import Login, load_user
from .watch import Watched

__all__ = ["SessionAuthMiddleware"]


class SessionAuthMiddleware(AuthMiddleware):
    """Sets `scope["user"]` and `scope["session"]` from Django's session cookie.

    The rules are those of Django's `get_user`: the session exists and has not expired, its backend
    is in `AUTHENTICATION_BACKENDS`, the user is active, and the password is the one of the login.
    If a check fails, the user is an `AnonymousUser`. User and session are loaded on a worker thread
    before the handshake is accepted, so that handlers use them without a query. This takes two
    queries with the db engine, and none without the cookie. If the database or the cache fails, the
    handshake is refused with 503.

    When a check no longer holds, the open sockets are closed with 4401. The sockets of a session
    without a user are closed when the session ends, for example because the user has logged in.

    Args:
        app: the ASGI application.
        select_related: fields of the user to load with it, such as ["profile"].
        require_user: refuse clients that are not logged in with 403.
        session_check_seconds: the longest that an open socket outlives its session.
        outage_seconds: the longest that a socket stays open while its session cannot be loaded.
    """

    def __init__(
        self,
        app: AsgiApplication,
        select_related: Sequence[str] | None = None,
        *,
        require_user: bool = False,
        session_check_seconds: float = 5.0,
        outage_seconds: float = 600.0,
    ) -> None:
        if _keeps_sessions_in_the_database():
            self.required_apps = (*self.required_apps, "django.contrib.sessions")
        super().__init__(
            app,
            require_user=require_user,
            session_check_seconds=session_check_seconds,
            outage_seconds=outage_seconds,
        )
        check_list("select_related", select_related or ())
        self.select_related = tuple(select_related or ())

    async def identify(self, scope: Scope) -> Identity:
        from django.conf import settings

        key = _cookies(scope).get(settings.SESSION_COOKIE_NAME) or None
        identity: Identity = await call_in_handshake(self._load, key)
        return identity

    def _load(self, key: str | None) -> Identity:
        from django.contrib.auth import (
            BACKEND_SESSION_KEY,
            HASH_SESSION_KEY,
            SESSION_KEY,
            get_user_model,
        )
        from django.contrib.auth.models import AnonymousUser

        session, found = load_session(key)
        if key is None or not found:
            return Identity({"session": session, "user": AnonymousUser()})
        login = user = None
        if SESSION_KEY in session and BACKEND_SESSION_KEY in session:
            pk = get_user_model()._meta.pk.to_python(session[SESSION_KEY])
            login = Login(pk, session[BACKEND_SESSION_KEY], session.get(HASH_SESSION_KEY))
            user = load_user(login, self.select_related)
        tags = {"session": digest(key), "auth": "session"}
        if user is None:
            login = None
        else:
            user.backend = session[BACKEND_SESSION_KEY]
            tags["user"] = str(user.pk)
        watched = Watched(
            tag=("session", tags["session"]),
            key=key,
            survivors=surviving,
            login=login,
            check_seconds=self.session_check_seconds,
            outage_seconds=self.outage_seconds,
        )
        return Identity({"session": session, "user": user or AnonymousUser()}, tags, watched)


def _keeps_sessions_in_the_database() -> bool:
    from django.conf import settings

    return settings.SESSION_ENGINE in (
        "django.contrib.sessions.backends.db",
        "django.contrib.sessions.backends.cached_db",
    )


def _cookies(scope: Scope) -> dict[str, str]:
    """The cookies, parsed by Django. Several headers are joined (RFC 9113, section 8.2.3)."""
    from django.http import parse_cookie

    lines = [bytes(value) for name, value in scope.get("headers", ()) if name.lower() == b"cookie"]
    cookies: dict[str, str] = parse_cookie(b"; ".join(lines).decode("latin-1"))
    return cookies
