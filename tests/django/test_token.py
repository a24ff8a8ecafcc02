"""Token middleware: programs and single-page applications log in without a cookie."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest

from django_sockets.middleware import (
    BaseTokenAuthMiddleware,
    DRFTokenAuthMiddleware,
    SessionAuthMiddleware,
    offer,
    secure,
)
from django_sockets.runtime import hooks
from django_sockets.runtime.worker_threads import WorkerPool
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import HandshakeRefused, SocketClient

MARK = "django-sockets.token"
NEVER = 3600.0


class Desk(BaseSocketServer):
    config = "memory://desk"

    async def connect(self) -> None:
        user = self.scope["user"]
        loaded = user._state.fields_cache.get("team") if user.pk else None
        team = loaded and loaded.name
        await self.async_send([user.username, team, self.tags, self.scope["subprotocols"]])


class Versioned(Desk):
    subprotocol = "chat.v2"


@pytest.fixture
async def ann(members: Any) -> Any:
    from members.models import Team

    team = await members.do(Team.objects.create, name="blue")
    return await members.do(members.create, "ann", team=team)


@pytest.fixture
async def key(members: Any, ann: Any) -> str:
    from rest_framework.authtoken.models import Token

    return str((await members.do(Token.objects.create, user=ann)).key)


async def test_a_slow_get_user_leaves_threads_to_open_sockets(
    monkeypatch: pytest.MonkeyPatch, django_project: None
) -> None:
    pool, go_on, slow = WorkerPool(4), threading.Event(), asyncio.Event()
    monkeypatch.setattr(hooks, "worker_pool", lambda settings: pool)
    loop = asyncio.get_running_loop()

    class Echo(BaseSocketServer):
        config = "memory://desk"

        def receive(self, data: Any) -> None:
            self.send(data)

    def get_user(token: str) -> None:
        loop.call_soon_threadsafe(slow.set)
        go_on.wait(20)

    app = BaseTokenAuthMiddleware(Echo.as_asgi, get_user=get_user)
    async with SocketClient(Echo.as_asgi) as client:
        waiting = [SocketClient(app, **FORMS["header"]("key")) for _ in range(12)]
        connecting = [asyncio.create_task(one.connect()) for one in waiting]
        await asyncio.wait_for(slow.wait(), 20)
        for number in range(5):
            await client.send_json(number)
            assert await client.receive_json() == number
        go_on.set()
        refused = await asyncio.gather(*connecting, return_exceptions=True)
    assert {type(one) for one in refused} == {HandshakeRefused}


FORMS = {
    "header": lambda key: {"headers": {"authorization": f"Token {key}"}},
    "bearer": lambda key: {"headers": {"authorization": f"bearer {key}"}},
    "two protocols": lambda key: {"subprotocols": [MARK, key]},
    "published": lambda key: {"subprotocols": [f"Token.{key}"]},
}


@pytest.mark.parametrize("form", FORMS)
async def test_a_token_brings_its_user_in_one_query(form: str, key: str, members: Any) -> None:
    members.queries.clear()
    app = DRFTokenAuthMiddleware(Desk.as_asgi, select_related=["user__team"])
    async with SocketClient(app, **FORMS[form](key)) as socket:
        name, team, tags, _ = await socket.receive_json()
    assert (name, team) == ("ann", "blue")
    assert set(tags) == {"user", "token", "auth"}
    assert key not in repr(tags)
    assert len(members.handshake_queries()) == 1, members.queries


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("why", ["wrong", "inactive"])
async def test_a_wrong_token_is_refused_and_not_anonymous(
    form: str, why: str, ann: Any, key: str, members: Any
) -> None:
    if why == "inactive":
        ann.is_active = False
        await members.do(ann.save)
    else:
        key = key[::-1]
    with pytest.raises(HandshakeRefused) as refused:
        async with SocketClient(DRFTokenAuthMiddleware(Desk.as_asgi), **FORMS[form](key)):
            pass
    assert refused.value.status == 401


@pytest.mark.parametrize(
    ("socket_class", "offered", "answer", "left"),
    [
        (Desk, [MARK, "KEY"], MARK, [MARK]),
        (Desk, [MARK, "KEY", "chat.v1"], "chat.v1", ["chat.v1"]),
        (Desk, ["chat.v1", "chat.v2", MARK, "KEY"], "chat.v1", ["chat.v1", "chat.v2"]),
        (Desk, ["Token.KEY"], "Token.KEY", []),
        (Desk, ["Token.KEY", "chat.v1"], "chat.v1", ["chat.v1"]),
        (Versioned, ["chat.v1", "chat.v2", MARK, "KEY"], "chat.v2", ["chat.v1", "chat.v2"]),
        (Versioned, ["Token.KEY", "chat.v2"], "chat.v2", ["chat.v2"]),
        # A browser fails a handshake whose answer it did not offer.
        (Versioned, [MARK, "KEY"], MARK, [MARK]),
        (Versioned, ["Token.KEY"], "Token.KEY", []),
    ],
)
async def test_the_answer_is_a_protocol_of_the_client_and_not_its_key(
    socket_class: Any, offered: list[str], answer: str, left: list[str], key: str
) -> None:
    offered = [name.replace("KEY", key) for name in offered]
    app = DRFTokenAuthMiddleware(socket_class.as_asgi)
    async with SocketClient(app, subprotocols=offered) as socket:
        assert (await socket.receive_json())[3] == left
        assert socket.subprotocol == answer.replace("KEY", key)


async def test_a_key_that_has_to_be_echoed_is_hinted_at_once(
    key: str, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offer, "_hinted", False)
    app = DRFTokenAuthMiddleware(Desk.as_asgi)
    for _ in range(3):
        async with SocketClient(app, subprotocols=[f"Token.{key}"]):
            pass
    (hint,) = [record.getMessage() for record in caplog.records if MARK in record.getMessage()]
    assert key not in hint


async def test_a_query_string_counts_only_when_its_parameter_is_named(key: str) -> None:
    path = f"/?token={key}"
    async with SocketClient(DRFTokenAuthMiddleware(Desk.as_asgi), path) as socket:
        assert (await socket.receive_json())[0] == ""
    app = DRFTokenAuthMiddleware(Desk.as_asgi, query_parameter="token")
    async with SocketClient(app, path) as socket:
        assert (await socket.receive_json())[0] == "ann"


async def test_without_a_token_it_is_nobody_or_refused(members: Any) -> None:
    basic = {"authorization": "Basic YTpi"}  # A header for another scheme.
    async with SocketClient(DRFTokenAuthMiddleware(Desk.as_asgi), headers=basic) as socket:
        assert (await socket.receive_json())[0] == ""
    with pytest.raises(HandshakeRefused) as refused:
        async with SocketClient(DRFTokenAuthMiddleware(Desk.as_asgi, require_user=True)):
            pass
    assert refused.value.status == 401
    assert members.handshake_queries() == []


@pytest.mark.parametrize(
    ("act", "code"), [("token deleted", 4401), ("inactive", 4401), ("user deleted", 4401)]
)
@pytest.mark.parametrize("told", [True, False])
async def test_open_sockets_end_with_their_token(
    act: str, code: int, told: bool, ann: Any, key: str, members: Any
) -> None:
    from rest_framework.authtoken.models import Token

    def change() -> None:
        if act == "token deleted":
            token = Token.objects.filter(pk=key)
            token.delete() if told else token._raw_delete("default")
        elif act == "inactive" and told:
            ann.is_active = False
            ann.save()
        elif act == "inactive":
            type(ann).objects.update(is_active=False)
        elif told:
            ann.delete()
        else:
            Token.objects.all()._raw_delete("default")
            type(ann).objects.all()._raw_delete("default")

    seconds = NEVER if told else 0.25
    app = DRFTokenAuthMiddleware(Desk.as_asgi, session_check_seconds=seconds)
    async with SocketClient(app, **FORMS["header"](key)) as socket:
        assert (await socket.receive_json())[0] == "ann"
        await members.do(change)
        assert await socket.receive_close() == code


async def test_a_new_password_leaves_tokens_alone(ann: Any, key: str, members: Any) -> None:
    app = DRFTokenAuthMiddleware(Desk.as_asgi, session_check_seconds=0.25)
    async with SocketClient(app, **FORMS["header"](key)) as socket:
        assert (await socket.receive_json())[0] == "ann"
        ann.set_password("second")
        await members.do(ann.save)
        assert await socket.receive_nothing(0.5)


class Answer:
    """The possible results of an application's `get_user`."""

    @staticmethod
    def plain(token: str) -> Any:
        return Someone() if token == "right" else None

    @staticmethod
    async def awaited(token: str) -> Any:
        return Someone() if token == "right" else None

    @staticmethod
    def broken(token: str) -> Any:
        raise LookupError("no directory")

    @staticmethod
    def down(token: str) -> Any:
        raise ConnectionError("no directory")


class Someone:
    username = "someone"
    pk = None
    is_authenticated = True


class Own(BaseTokenAuthMiddleware):
    async def get_user(self, token: str) -> Any:
        return Answer.plain(token)


@pytest.mark.parametrize(
    ("wrap", "token", "status"),
    [
        (Own, "right", None),
        (Own, "wrong", 401),
        (lambda app: BaseTokenAuthMiddleware(app, get_user=Answer.plain), "right", None),
        (lambda app: BaseTokenAuthMiddleware(app, get_user=Answer.awaited), "right", None),
        (lambda app: BaseTokenAuthMiddleware(app, get_user=Answer.plain), "wrong", 401),
        (lambda app: BaseTokenAuthMiddleware(app, get_user=Answer.broken), "right", 500),
        (lambda app: BaseTokenAuthMiddleware(app, get_user=Answer.down), "right", 503),
        (BaseTokenAuthMiddleware, "right", 500),
    ],
)
async def test_tokens_of_the_applications_own(wrap: Any, token: str, status: int | None) -> None:
    client = SocketClient(wrap(Desk.as_asgi), **FORMS["header"](token))
    if status is None:
        async with client as socket:
            assert (await socket.receive_json())[0] == "someone"
        return
    with pytest.raises(HandshakeRefused) as refused:
        await client.connect()
    assert refused.value.status == status


async def test_a_session_and_a_token_together(ann: Any, key: str, members: Any) -> None:
    bob = await members.do(members.create, "bob")
    cookie = {"cookie": f"sessionid={await members.do(members.login, bob)}"}
    app = secure(Desk.as_asgi, token=DRFTokenAuthMiddleware, require_user=True, allowed_origins=())
    assert not isinstance(app, SessionAuthMiddleware)  # The Origin comes first.
    async with SocketClient(app, headers=cookie) as socket:
        assert (await socket.receive_json())[0] == "bob"
    async with SocketClient(app, headers=cookie, subprotocols=[MARK, key]) as socket:
        assert (await socket.receive_json())[0] == "ann"
    members.queries.clear()
    for headers, status in (({}, 401), ({**cookie, "origin": "https://evil.example"}, 403)):
        with pytest.raises(HandshakeRefused) as refused:
            await SocketClient(app, headers=headers).connect()
        assert refused.value.status == status
    assert members.handshake_queries() == []


def test_a_missing_rest_framework_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rest_framework.authtoken", None)
    with pytest.raises(ImportError, match=r"django-sockets\[drf\]"):
        DRFTokenAuthMiddleware(Desk.as_asgi)
