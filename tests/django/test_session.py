"""SessionAuthMiddleware sets the user that Django would accept, or an anonymous user."""

from __future__ import annotations

from typing import Any

import pytest

from django_sockets.middleware import SessionAuthMiddleware, secure
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import HandshakeRefused, SocketClient

ENGINES = ["db", "cached_db", "cache", "file", "signed_cookies"]
MODEL = "django.contrib.auth.backends.ModelBackend"


class Desk(BaseSocketServer):
    config = "memory://desk"

    async def connect(self) -> None:
        # On the loop, where a query would raise.
        user = self.scope["user"]
        team = user.team.name if getattr(user, "team_id", None) else None
        self.last = self.scope["session"].get("last")
        await self.async_send([user.username, team, self.last, self.tags])


def client(key: str | None, app: Any = None, **options: Any) -> SocketClient:
    headers = {"cookie": f"a=b; sessionid={key}"} if key else {}
    return SocketClient(app or SessionAuthMiddleware(Desk.as_asgi), headers=headers, **options)


async def seen(key: str | None, app: Any = None) -> list[Any]:
    async with client(key, app) as socket:
        found: list[Any] = await socket.receive_json()
    return found


@pytest.mark.parametrize("engine", ENGINES)
async def test_the_user_and_the_session_come_from_the_cookie(
    engine: str, members: Any, settings_of: Any
) -> None:
    settings_of(SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}")
    ann = await members.do(members.create)
    key = await members.do(members.login, ann, last="42")
    name, _, last, tags = await seen(key)
    assert (name, last) == ("ann", "42")
    assert tags["user"] == str(ann.pk)
    assert key not in repr(tags)
    assert len(tags["session"]) == 32


async def test_user_and_session_cost_two_queries_with_what_belongs_to_the_user(
    members: Any,
) -> None:
    from members.models import Team

    team = await members.do(Team.objects.create, name="blue")
    ann = await members.do(members.create, team=team)
    key = await members.do(members.login, ann)
    members.queries.clear()
    name, found, _, _ = await seen(key, SessionAuthMiddleware(Desk.as_asgi, ["team"]))
    assert (name, found) == ("ann", "blue")
    assert len(members.handshake_queries()) == 2, members.queries
    assert not [query for query in members.queries if query.startswith("MainThread")]


async def test_without_a_cookie_nothing_is_asked(members: Any) -> None:
    assert await seen(None) == ["", None, None, {}]
    assert members.handshake_queries() == []


async def test_who_is_not_logged_in_is_anonymous_or_refused(members: Any) -> None:
    assert (await seen("nosuchsessionkey"))[0] == ""
    with pytest.raises(HandshakeRefused) as refused:
        await seen(None, SessionAuthMiddleware(Desk.as_asgi, require_user=True))
    assert refused.value.status == 403


@pytest.mark.parametrize(
    "change",
    [
        "password",
        "raw password",
        "inactive",
        "deleted",
        "flushed",
        "expired",
        "backend removed",
        "no hash",
    ],
)
async def test_a_login_that_django_would_not_accept_is_none(
    change: str, members: Any, settings_of: Any
) -> None:
    from django.contrib.auth import HASH_SESSION_KEY, get_user_model
    from django.contrib.sessions.backends.db import SessionStore
    from django.contrib.sessions.models import Session

    ann = await members.do(members.create)
    key = await members.do(members.login, ann)

    def act() -> None:
        everybody = get_user_model().objects.all()
        if change == "password":
            ann.set_password("second")
            ann.save()
        elif change == "raw password":
            everybody.update(password="md5$x$y")
        elif change == "inactive":
            everybody.update(is_active=False)
        elif change == "deleted":
            everybody.delete()
        elif change == "flushed":
            SessionStore(key).flush()
        elif change == "expired":
            Session.objects.update(expire_date="2001-01-01T00:00:00Z")
        elif change == "backend removed":
            settings_of(AUTHENTICATION_BACKENDS=["members.backends.Directory"])
        else:
            session = SessionStore(key)
            del session[HASH_SESSION_KEY]
            session.save()

    app = SessionAuthMiddleware(Desk.as_asgi, require_user=True)
    assert (await seen(key, app))[0] == "ann"
    await members.do(act)
    with pytest.raises(HandshakeRefused) as refused:
        await seen(key, app)
    assert refused.value.status == 403
    assert (await seen(key))[0] == ""


async def test_a_session_under_an_old_secret_key_is_valid_and_its_key_stays(
    members: Any, settings_of: Any
) -> None:
    from django.contrib.sessions.models import Session

    ann = await members.do(members.create)
    key = await members.do(members.login, ann)
    settings_of(SECRET_KEY="another", SECRET_KEY_FALLBACKS=["the key of now"])
    assert (await seen(key))[0] == "ann"
    # No answer of a websocket could give the browser the cookie of a new key.
    assert await members.do(Session.objects.filter(pk=key).exists)
    settings_of(SECRET_KEY="another", SECRET_KEY_FALLBACKS=[])
    assert (await seen(key))[0] == ""


@pytest.mark.parametrize(
    ("backend", "name", "active", "expected"),
    [
        ("members.backends.Directory", "ann", True, "ann"),
        ("members.backends.Directory", "ann", False, ""),
        ("members.backends.NobodyNamedEve", "ann", True, "ann"),
        ("members.backends.NobodyNamedEve", "eve", True, ""),
        ("django.contrib.auth.backends.AllowAllUsersModelBackend", "ann", False, "ann"),
    ],
)
async def test_backends_of_the_project_decide_as_they_do_for_django(
    backend: str, name: str, active: bool, expected: str, members: Any, settings_of: Any
) -> None:
    from members.models import Team

    settings_of(AUTHENTICATION_BACKENDS=[backend])
    team = await members.do(Team.objects.create, name="blue")
    user = await members.do(members.create, name, is_active=active, team=team)
    key = await members.do(members.login, user, backend)
    assert (await seen(key, SessionAuthMiddleware(Desk.as_asgi, ["team"])))[0] == expected


async def test_an_error_refuses_and_never_makes_somebody_anonymous(
    members: Any, settings_of: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    from django.contrib.sessions.backends.db import SessionStore
    from django.db import OperationalError

    ann = await members.do(members.create)
    settings_of(AUTHENTICATION_BACKENDS=["members.backends.Broken"])
    key = await members.do(members.login, ann, "members.backends.Broken")
    with pytest.raises(HandshakeRefused) as refused:
        await seen(key)
    assert refused.value.status == 500

    def down(self: Any) -> Any:
        raise OperationalError("the database is down")

    monkeypatch.setattr(SessionStore, "load", down)
    with pytest.raises(HandshakeRefused) as refused:
        await seen(key)
    assert refused.value.status == 503


async def test_a_cache_that_is_down_is_no_empty_session(
    members: Any, settings_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.core.cache.backends.locmem import LocMemCache

    settings_of(SESSION_ENGINE="django.contrib.sessions.backends.cache")
    key = await members.do(members.login, await members.do(members.create))

    def down(self: Any, *_: Any, **__: Any) -> Any:
        raise ConnectionError("the cache is down")

    monkeypatch.setattr(LocMemCache, "get", down)
    with pytest.raises(HandshakeRefused) as refused:
        await seen(key)
    assert refused.value.status == 503


async def test_what_is_no_websocket_passes_untouched(members: Any) -> None:
    passed = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope)

    scope = {"type": "http", "headers": [(b"cookie", b"sessionid=abcdefgh")]}
    await secure(app, require_user=True)(scope, None, None)
    assert passed == [scope]
    assert passed[0] is scope
    assert members.handshake_queries() == []
