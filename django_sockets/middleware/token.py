"""BaseTokenAuthMiddleware: the user of a token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ..connection.limits import check_list
from .base import AsgiApplication, AuthMiddleware, Identity, Refused, Scope, call_in_handshake
from .offer import CHALLENGE, read_offer
from .tags import digest
from .users import Login, is_current
from .watch import Watched

__all__ = ["BaseTokenAuthMiddleware"]

SUBPROTOCOL = "django_sockets.subprotocol"


class BaseTokenAuthMiddleware(AuthMiddleware):
    """Sets `scope["user"]` from a token. Write the method `get_user(token)`, or pass a function.

    The token comes in the header `Authorization: Token <key>` (or `Bearer`), or as a subprotocol:
    a browser offers `["django-sockets.token", key]`, and optionally protocols of the application.
    The response names the application's protocol and never the key. The form of version 3,
    `Token.<key>`, is accepted too; if it is the only offer, the response has to repeat it.

    A handshake with a wrong token or an inactive user is refused with 401. Without a token,
    `scope["user"]` keeps the value of an outer middleware, or is an `AnonymousUser`. If `get_user`
    raises, the handshake is refused with 500 or 503. The open sockets of a token are closed with
    4401 when its user is deactivated or deleted, or when `valid_tokens` does not return it.

    Args:
        app: the ASGI application.
        get_user: `def` or `async def`, token -> user or None; it replaces the method.
        query_parameter: also accept a token in the query string, as in `?token=`. Such a token
            appears in logs and browser histories. Default: None, not accepted.
        require_user: refuse clients without a token with 401.
        session_check_seconds: the longest that an open socket outlives its token.
        outage_seconds: the longest that a socket stays open while its token cannot be checked.
    """

    keywords: Sequence[str] = ("Token", "Bearer")
    """Accepted schemes of the header Authorization, in any case."""
    anonymous_status = 401
    anonymous_headers = CHALLENGE

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_list(f"{cls.__name__}.keywords", cls.keywords)

    def __init__(
        self,
        app: AsgiApplication,
        *,
        get_user: Any = None,
        query_parameter: str | None = None,
        require_user: bool = False,
        session_check_seconds: float = 5.0,
        outage_seconds: float = 600.0,
    ) -> None:
        super().__init__(
            app,
            require_user=require_user,
            session_check_seconds=session_check_seconds,
            outage_seconds=outage_seconds,
        )
        check_list("keywords", self.keywords)
        self.query_parameter = query_parameter
        self._get_user = self.get_user if get_user is None else get_user

    def get_user(self, token: str) -> Any:
        """The user of a token, or None. May be `async def`; a `def` runs on a worker thread."""
        raise NotImplementedError(f"{type(self).__name__} needs a get_user(token)")

    def valid_tokens(self, tokens: Sequence[str]) -> Collection[str]:
        """The tokens of open sockets that are still valid. Called on a thread, at intervals."""
        return tokens

    async def identify(self, scope: Scope) -> Identity | None:
        from django.contrib.auth.models import AnonymousUser

        offer = read_offer(scope, self.keywords, self.query_parameter)
        found: dict[str, Any] = {"subprotocols": list(offer.subprotocols)}
        if offer.answer is not None:
            found[SUBPROTOCOL] = offer.answer
        if offer.token is None:
            if scope.get("user") is None:
                found["user"] = AnonymousUser()
            return Identity(found)
        user = await call_in_handshake(self._get_user, offer.token)
        pk = getattr(user, "pk", None)
        login = Login(pk) if pk is not None else None
        if not is_current(Login(pk), user):
            raise Refused(401, "a wrong token or an inactive user", CHALLENGE)
        found["user"] = user
        tags = {"token": digest(offer.token), "auth": "token"}
        if login is not None:
            tags["user"] = str(pk)
        watched = Watched(
            tag=("token", tags["token"]),
            key=offer.token,
            survivors=self.valid_tokens,
            login=login,
            check_seconds=self.session_check_seconds,
            outage_seconds=self.outage_seconds,
        )
        return Identity(found, tags, watched)
