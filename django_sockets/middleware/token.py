"""BaseTokenAuthMiddleware: the user that a token stands for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ..connection.limits import check_list
from .base import AsgiApplication, AuthMiddleware, Identity, Refused, Scope, in_thread
from .offer import CHALLENGE, read_offer
from .tags import digest
from .users import Login, is_current
from .watch import Watched

__all__ = ["BaseTokenAuthMiddleware"]

SUBPROTOCOL = "django_sockets.subprotocol"


class BaseTokenAuthMiddleware(AuthMiddleware):
    """Sets `scope["user"]` by a token. Write `get_user(token)`, or pass it.

    The token comes in the header `Authorization: Token <key>` (or `Bearer`), or as a subprotocol:
    a browser offers `["django-sockets.token", key]`, and its own protocols beside them. The
    application's protocol is answered, never the key. `Token.<key>`, the form of version 3, is
    understood too; offered alone it has to be answered as it is.

    A wrong token refuses with 401, and so does an inactive user. Without a token `scope["user"]`
    stays what an outer middleware made it, or is an `AnonymousUser`. An error of `get_user` refuses
    with 500 or 503. The open sockets of a token are closed with 4401 when its user is deactivated
    or deleted, or `valid_tokens` leaves it out.

    Args:
        app: the ASGI application.
        get_user: `def` or `async def`, token -> user or None; in place of the method.
        query_parameter: also take the token of a query string, as in `?token=`. It ends up in logs
            and histories: off unless a name is given.
        require_user: refuse with 401 who has no token.
        session_check_seconds: how long an open socket may outlive its token.
        outage_seconds: how long it may while the token cannot be looked up.
    """

    keywords: Sequence[str] = ("Token", "Bearer")
    """Schemes of the header Authorization, in any case."""
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
        """Which tokens of open sockets are still valid; called on a thread, now and then."""
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
        user = await in_thread(self._get_user, offer.token)
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
