"""Signed channels admit the right client to one channel for some time, and nobody else.

If one of these fails, somebody reads messages that are not meant for them.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from django.core import signing
from django.template import Context, Engine, TemplateSyntaxError

from django_sockets import CallError, ChannelError, ConfigurationError, PositionError
from django_sockets.closing import async_revoke_channels
from django_sockets.middleware import OriginMiddleware, SessionAuthMiddleware, secure
from django_sockets.middleware.token import BaseTokenAuthMiddleware
from django_sockets.protocol import tokens
from django_sockets.signed_channels import async_position, channel_token, position
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import HandshakeRefused, SocketClient, SocketClosed
from django_sockets.testing.proxy import FaultProxy
from django_sockets.testing.servers import CacheServer

ROOT = Path(__file__).resolve().parents[2]
V1 = "django-sockets.v1"


class Orders(BaseSocketServer):
    """Nobody may subscribe by name."""

    config = "memory://orders"


def client(key: str | None = None, app: Any = None, **options: Any) -> SocketClient:
    headers = {"cookie": f"sessionid={key}"} if key else {}
    headers.update(options.pop("headers", {}))
    app = app or SessionAuthMiddleware(Orders.as_asgi)
    return SocketClient(app, headers=headers, subprotocols=[V1], **options)


async def subscribe(socket: SocketClient, *entries: dict[str, Any], request_id: int = 1) -> Any:
    """The answers, each as its error code or None."""
    await socket.send_json({"id": request_id, "subscribe": list(entries)})
    while "id" not in (frame := await socket.receive_json()):
        pass
    return [one.get("error", {}).get("code") for one in frame["ok"]["channels"]]


async def test_the_user_of_the_token_gets_in_and_others_do_not(members: Any) -> None:
    ann, bob = [await members.do(members.create, name) for name in ("ann", "bob")]
    keys = [await members.do(members.login, user) for user in (ann, bob)]
    token = channel_token("order:7", user=ann)
    for key, code in [(keys[0], None), (keys[1], "token_foreign"), (None, "token_foreign")]:
        async with client(key) as socket:
            assert await subscribe(socket, {"token": token}) == [code]
            await Orders({}).async_broadcast("order:7", "paid")
            if code is None:
                assert await socket.receive_json() == {"channel": "order:7", "data": "paid"}
            else:
                assert await socket.receive_nothing()


async def test_a_token_is_of_no_use_after_the_logout(members: Any) -> None:
    ann = await members.do(members.create)
    key = await members.do(members.login, ann)
    token = channel_token("order:7", user=ann)
    async with client(key) as socket:
        assert await subscribe(socket, {"token": token}) == [None]
        await members.do(members.logout, key)
        while "bye" not in (frame := await socket.receive_json()):
            pass
        assert frame == {"bye": {"code": 4401, "again": True, "after": [0, 1]}}
        assert await socket.receive_close() == 4401
    async with client(key) as socket:
        assert await subscribe(socket, {"token": token}) == ["token_foreign"]


async def test_a_token_of_a_session_is_for_this_session(members: Any) -> None:
    ann = await members.do(members.create)
    first, second = [await members.do(members.login, ann) for _ in range(2)]
    token = channel_token("order:7", user=None, session=first)
    for key, code in [(first, None), (second, "token_foreign"), (None, "token_foreign")]:
        async with client(key) as socket:
            assert await subscribe(socket, {"token": token}) == [code]


async def test_forged_and_expired_tokens_are_refused(
    members: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = channel_token("order:7", user=None)
    head, stamp, signature = good.split(":")
    other = channel_token("order:8", user=None)
    forged = [
        f"{other.split(':')[0]}:{stamp}:{signature}",
        f"{head}:{stamp}:{other.split(':')[2]}",
        f"{head}:{stamp}:",
        head,
        good + "A",
        "." + good,
        good * 40,
        ":",
        "\u00e9:\u00e9:\u00e9",
        signing.dumps({"c": "order:7", "e": time.time() + 600, "i": time.time()}),
        signing.dumps({"c": "order:7"}, salt="another"),
        signing.dumps([], salt=tokens.SALT),
        signing.dumps({"c": "order:7"}, salt=tokens.SALT),
    ]
    async with client() as socket:
        codes = await subscribe(socket, *({"token": token} for token in forged))
        assert codes == ["token_invalid"] * len(forged)
        assert await subscribe(socket, {"token": good, "channel": "order:8"}) == ["token_invalid"]
        assert await subscribe(socket, {"token": good}) == [None]
        now = time.time()
        monkeypatch.setattr(tokens.time, "time", lambda: now + 601)
        assert await subscribe(socket, {"token": good}) == ["token_expired"]
        renew = [{"channel": "order:7", "token": token} for token in (good, *forged[:2])]
        await socket.send_json({"id": 2, "renew": renew})
        answer = await socket.receive_json()
        errors = [one["error"]["code"] for one in answer["ok"]["channels"]]
        assert errors == ["token_expired", "token_invalid", "token_invalid"]


async def test_a_foreign_token_does_not_renew(members: Any) -> None:
    async with client() as socket:
        mine = channel_token("order:7", user=None, expires_seconds=60)
        assert await subscribe(socket, {"token": mine}) == [None]
        renew = [
            {"channel": "order:7", "token": channel_token("order:7", user=99)},
            {"channel": "order:8", "token": channel_token("order:8", user=None)},
            {"channel": "order:7", "token": channel_token("order:7", user=None)},
        ]
        await socket.send_json({"id": 2, "renew": renew})
        foreign, not_mine, renewed = (await socket.receive_json())["ok"]["channels"]
        assert foreign["error"]["code"] == "token_foreign"
        assert not_mine["error"]["code"] == "not_subscribed"
        assert renewed == {"channel": "order:7", "expires_in": 600}


async def test_tokens_survive_a_rotation_of_the_key(members: Any, settings_of: Any) -> None:
    token = channel_token("order:7", user=None)
    settings_of(SECRET_KEY="the next key", SECRET_KEY_FALLBACKS=["the key of now"])
    async with client() as socket:
        assert await subscribe(socket, {"token": token}) == [None]
    settings_of(SECRET_KEY_FALLBACKS=[])
    async with client() as socket:
        assert await subscribe(socket, {"token": token}) == ["token_invalid"]


async def test_a_revoked_right_ends_subscriptions_and_tokens(members: Any) -> None:
    ann, bob = [await members.do(members.create, name) for name in ("ann", "bob")]
    keys = [await members.do(members.login, user) for user in (ann, bob)]
    old = [channel_token("order:7", user=user) for user in (ann, bob)]
    async with client(keys[0]) as hers, client(keys[1]) as his:
        for socket, token in zip((hers, his), old, strict=True):
            assert await subscribe(socket, {"token": token}) == [None]
        await async_revoke_channels(["order:7"], user=ann, config="memory://orders")
        ended = {"unsubscribed": "order:7", "code": "revoked", "again": False}
        assert await hers.receive_json() == ended
        assert await subscribe(hers, {"token": old[0]}) == ["forbidden"]
        new = channel_token("order:7", user=ann)
        assert await subscribe(hers, {"token": new}) == [None]
        await Orders({}).async_broadcast("order:7", 1)
        for socket in (hers, his):
            assert await socket.receive_json() == {"channel": "order:7", "data": 1}
            assert await socket.receive_nothing()
    with pytest.raises(ConfigurationError):
        await async_revoke_channels([], user=ann)
    with pytest.raises(ConfigurationError):
        await async_revoke_channels("order:7")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"channel": ""}, ChannelError),
        ({"channel": None}, ChannelError),
        ({"expires_seconds": 0}, ConfigurationError),
        ({"expires_seconds": float("nan")}, ConfigurationError),
        ({"expires_seconds": 10**9}, ConfigurationError),
        ({"expires_seconds": True}, ConfigurationError),
        ({"since": "no position"}, PositionError),
        ({"since": 5}, PositionError),
        ({"user": ""}, ConfigurationError),
        ({"user": False}, ConfigurationError),
        ({"session": ""}, ConfigurationError),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        channel_token(**{"channel": "order:7", "user": None, **arguments})


def test_an_anonymous_user_has_to_be_written_out() -> None:
    from django.contrib.auth.models import AnonymousUser

    with pytest.raises(TypeError):
        channel_token("order:7")  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="user=None"):
        channel_token("order:7", user=AnonymousUser())


# Positions


async def test_a_position_read_before_the_state_misses_no_change(members: Any) -> None:
    config = {"url": "memory://kept-orders", "history": {"order:": {"messages": 9, "seconds": 60}}}

    class Kept(BaseSocketServer):
        pass

    Kept.config = config
    await Kept({}).async_broadcast("order:7", "before")
    since = await async_position(["order:7", "order:8"], config=config)
    token = channel_token("order:7", user=None, since=since)
    await Kept({}).async_broadcast("order:7", "between")
    async with client(app=SessionAuthMiddleware(Kept.as_asgi)) as socket:
        await socket.send_json({"id": 1, "subscribe": [{"token": token}]})
        while "id" not in (frame := await socket.receive_json()):
            pass
        (entry,) = frame["ok"]["channels"]
        assert (entry["recovered"], entry["count"]) == (True, 1)
        assert (await socket.receive_json())["data"] == "between"
    with pytest.raises(CallError):
        position("order:7", config=config)
    with pytest.raises(ChannelError):
        await async_position("no rule", config=config)


async def test_a_broker_that_does_not_answer_delays_one_page_and_no_second(
    fresh_valkey_server: CacheServer,
) -> None:
    async with FaultProxy(fresh_valkey_server.host, fresh_valkey_server.port) as proxy:
        source = (
            f"redis://127.0.0.1:{proxy.port}?prefix=p{random.getrandbits(48):x}"
            "&history_messages=9&history_seconds=60"
        )

        async def page() -> tuple[dict[str, str], float]:
            def view() -> tuple[dict[str, str], float]:
                began = time.monotonic()
                return position(["order:7", "order:8"], config=source), time.monotonic() - began

            return await asyncio.to_thread(view)

        for _ in range(50):  # The first call connects, which may take longer than a page waits.
            found, _ = await page()
            if found:
                break
            await asyncio.sleep(0.1)
        assert found.keys() == {"order:7", "order:8"}
        proxy.blackhole(existing_only=False)
        took = []
        for _ in range(5):
            found, seconds = await page()
            assert found == {}
            took.append(seconds)
        assert max(took) < 1
        assert max(took[1:]) < took[0] / 2


FIRST_PAGE = """
import asyncio, sys
from django_sockets import signed_channels

signed_channels.POSITION_SECONDS = 2
source = {"url": "slow://kept", "history": {"order:": {"messages": 9, "seconds": 60}}}
if sys.argv[1] == "async":
    print(asyncio.run(signed_channels.async_position("order:7", config=source)))
else:
    print(signed_channels.position("order:7", config=source))
"""
SLOW = """
import time
from django_sockets.backends.memory import MemoryBroker as Slow
time.sleep(3)  # It takes longer than a page waits for its broker.
"""


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_the_first_page_of_a_process_has_a_position_though_the_backend_loads_slowly(
    kind: str, tmp_path: Path
) -> None:
    metadata = tmp_path / "slow-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[django_sockets.brokers]\nslow = slow:Slow\n")
    (tmp_path / "slow.py").write_text(SLOW)
    found = subprocess.run(
        [sys.executable, "-c", FIRST_PAGE, kind],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert found.stdout.startswith("{'order:7': '"), found.stdout + found.stderr


# Template tags


def rendered(source: str, **context: Any) -> str:
    engine = Engine(libraries={"django_sockets": "django_sockets.templatetags.django_sockets"})
    template = engine.from_string("{% load django_sockets %}" + source)
    return str(template.render(Context(context)))


class Request:
    def __init__(self, user: Any) -> None:
        self.user = user


async def test_the_tag_signs_for_the_user_of_the_request(members: Any) -> None:
    ann = await members.do(members.create)
    key = await members.do(members.login, ann)
    token = rendered('{% channel_token "order:7" %}', request=Request(ann))
    async with client(key) as socket:
        assert await subscribe(socket, {"token": token}) == [None]
    async with client() as socket:
        assert await subscribe(socket, {"token": token}) == ["token_foreign"]
        public = rendered('{% channel_token "order:7" user=None expires_seconds=60 %}')
        assert await subscribe(socket, {"token": public}) == [None]


def test_the_tag_needs_a_user() -> None:
    from django.contrib.auth.models import AnonymousUser

    with pytest.raises(TemplateSyntaxError, match="user=None"):
        rendered('{% channel_token "order:7" %}')
    with pytest.raises(ConfigurationError, match="user=None"):
        rendered('{% channel_token "order:7" %}', request=Request(AnonymousUser()))


class UnusedNonce:
    """The nonce of Django 6.0 in a page that has not used it yet."""

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return "abc"


def test_the_import_map_has_the_addresses_and_the_nonce(settings_of: Any) -> None:
    settings_of(STATIC_URL="/static/")
    plain = rendered("{% django_sockets_client %}")
    assert plain.startswith('<script type="importmap">{"imports": {"django-sockets": "/static/dj')
    with_nonce = rendered("{% django_sockets_client %}", csp_nonce='a"b')
    assert with_nonce.startswith('<script type="importmap" nonce="a&quot;b">')
    assert "nonce" not in plain
    lazy = rendered("{% django_sockets_client %}", csp_nonce=UnusedNonce())
    assert lazy.startswith('<script type="importmap" nonce="abc">')
    settings_of(STATIC_URL="/</script><script>/")
    assert rendered("{% django_sockets_client %}").count("<") == 2


# Refusals that a browser can read


class Tokens(BaseTokenAuthMiddleware):
    def get_user(self, token: str) -> Any:
        return None


async def refused(socket: SocketClient) -> int:
    async with socket:
        assert socket.subprotocol == V1
        frame = await socket.receive_json()
        with pytest.raises(SocketClosed) as closed:
            await socket.receive()
        assert frame == {"bye": {"code": closed.value.code, "again": False}}
    return closed.value.code


FOREIGN = {"origin": "https://evil.example"}


def login_required() -> Any:
    return SessionAuthMiddleware(Orders.as_asgi, require_user=True)


async def test_a_missing_login_is_told_with_4401(members: Any) -> None:
    assert await refused(client(app=login_required())) == 4401
    assert await refused(client(app=secure(Orders.as_asgi, require_user=True))) == 4401
    wrong = client(app=Tokens(Orders.as_asgi), headers={"authorization": "Token wrong"})
    assert await refused(wrong) == 4401
    with pytest.raises(HandshakeRefused) as raw:
        await SocketClient(login_required()).connect()
    assert raw.value.status == 403


async def test_a_page_of_another_site_does_not_learn_whether_there_is_a_login(
    members: Any,
) -> None:
    ann = await members.do(members.create)
    key = await members.do(members.login, ann)
    for cookie in (key, None):
        with pytest.raises(HandshakeRefused) as refusal:
            await client(cookie, login_required(), headers=FOREIGN).connect()
        assert refusal.value.status == 403


async def test_the_allowed_origins_of_the_class_and_of_the_middleware_count(
    members: Any,
) -> None:
    class Open(Orders):
        allowed_origins = ("https://evil.example",)

    app = SessionAuthMiddleware(Open.as_asgi, require_user=True)
    assert await refused(client(app=app, headers=FOREIGN)) == 4401
    outer = OriginMiddleware(login_required(), allowed_origins=["https://evil.example"])
    assert await refused(client(app=outer, headers=FOREIGN)) == 4401


async def test_authorize_refuses_in_a_readable_way_only_after_the_origin_passed(
    members: Any,
) -> None:
    class Refusing(Orders):
        async def authorize(self) -> bool:
            return False

    class Failing(Orders):
        async def authorize(self) -> bool:
            raise ValueError("the database is down")

    assert await refused(client(app=Refusing.as_asgi)) == 4403
    with pytest.raises(HandshakeRefused):  # The client tries again, as after a lost connection.
        await client(app=Failing.as_asgi).connect()
    with pytest.raises(HandshakeRefused):
        await client(app=Refusing.as_asgi, headers=FOREIGN).connect()
    with pytest.raises(HandshakeRefused):
        await SocketClient(Refusing.as_asgi).connect()


async def test_a_token_of_a_middleware_is_offered_beside_the_protocol(members: Any) -> None:
    ann = await members.do(members.create)
    app = Tokens(Orders.as_asgi, get_user=lambda token: ann if token == "key" else None)
    token = channel_token("order:7", user=ann)
    for offered in ([V1, "django-sockets.token", "key"], ["django-sockets.token", "key", V1]):
        async with SocketClient(app, subprotocols=offered) as socket:
            assert socket.subprotocol == V1
            assert await subscribe(socket, {"token": token}) == [None]
    assert await refused(SocketClient(app, subprotocols=["django-sockets.token", "x", V1])) == 4401
