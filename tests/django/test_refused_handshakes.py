"""Operators see every refused handshake, also those of routers and middleware, and see it once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.urls import path

from django_sockets.errors import ConfigurationError, Reject
from django_sockets.integration.routing import ProtocolTypeRouter, URLRouter
from django_sockets.middleware import BaseTokenAuthMiddleware, OriginMiddleware, secure
from django_sockets.observability.measurements import Measurements
from django_sockets.observer import (
    ConnectionClosed,
    HandshakeEnded,
    add_observer,
    remove_observer,
)
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import HandshakeRefused, SocketClient
from support.recording import Recorder, recording

V1 = "django-sockets.v1"
EVIL = {"headers": {"origin": "https://evil.test"}}
TOKEN = {"headers": {"authorization": "Token wrong"}}


class Desk(BaseSocketServer):
    config = "memory://refused"

    def authorize(self) -> None:
        if self.scope["path"] == "/mine":
            raise Reject(status=418)


class Moody(Desk):
    def configure(self) -> None:
        raise LookupError("the application is wrong")


class Nowhere(Desk):
    config = "nothing://such"


def guard(raised: Exception | None = None) -> BaseTokenAuthMiddleware:
    def get_user(token: str) -> None:
        if raised is not None:
            raise raised

    return BaseTokenAuthMiddleware(Desk.as_asgi, get_user=get_user)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


REFUSALS: dict[str, tuple[Callable[[], Any], dict[str, Any], int]] = {
    "no route": (lambda: URLRouter([path("ws/", Desk.as_asgi)]), {"path": "/other/"}, 404),
    "no route, with the protocol": (
        lambda: URLRouter([path("ws/", Desk.as_asgi)]),
        {"path": "/other/", "subprotocols": [V1]},
        404,
    ),
    "no route in an inner router": (
        lambda: URLRouter([path("ws/", lambda *_: None), path("in/", URLRouter([]))]),
        {"path": "/in/x/"},
        404,
    ),
    "no protocol": (lambda: ProtocolTypeRouter({}), {}, 404),
    "no login": (lambda: secure(Desk.as_asgi, require_user=True), {}, 403),
    "wrong origin": (lambda: secure(Desk.as_asgi, allowed_origins=[]), EVIL, 403),
    "wrong origin, inner": (lambda: secure(Desk.as_asgi), EVIL, 403),
    "origin alone": (lambda: OriginMiddleware(Desk.as_asgi), EVIL, 403),
    "wrong token": (guard, TOKEN, 401),
    "two tokens": (
        guard,
        {**TOKEN, "subprotocols": ["django-sockets.token", "other"]},
        401,
    ),
    "malformed subprotocol": (guard, {"subprotocols": ["a b"]}, 400),
    "database away": (lambda: guard(OSError("away")), TOKEN, 503),
    "wrong application": (lambda: guard(LookupError("wrong")), TOKEN, 500),
    "authorize behind middleware": (lambda: secure(Desk.as_asgi), {"path": "/mine"}, 418),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refusal_is_told_once_with_its_status(
    members: Any, recorder: Recorder, case: str
) -> None:
    make, arguments, status = REFUSALS[case]
    with pytest.raises(HandshakeRefused) as refused:
        async with SocketClient(make(), **arguments):
            pass
    assert refused.value.status == status
    (event,) = recorder.of(HandshakeEnded)
    assert (event.outcome, event.status) == ("refused", status)
    knows_class = case in ("wrong origin, inner", "authorize behind middleware")
    assert event.socket is (Desk if knows_class else None)
    assert 0 <= event.seconds < 60


@pytest.mark.parametrize(
    ("app", "arguments", "status", "code"),
    [
        (lambda: secure(Desk.as_asgi, require_user=True), {}, 403, 4401),
        (guard, TOKEN, 401, 4401),
        (lambda: secure(Desk.as_asgi), {"path": "/mine"}, 418, 4418),
    ],
)
async def test_a_refusal_that_a_page_can_read_is_told_as_a_refusal(
    members: Any,
    recorder: Recorder,
    app: Callable[[], Any],
    arguments: dict[str, Any],
    status: int,
    code: int,
) -> None:
    client = SocketClient(app(), subprotocols=[V1], **arguments)
    async with client:
        assert await client.receive_close() == code
    (event,) = recorder.of(HandshakeEnded)
    assert (event.outcome, event.status) == ("refused", status)
    assert recorder.of(ConnectionClosed) == []


async def test_the_decision_takes_the_time_of_the_middleware(recorder: Recorder) -> None:
    async def get_user(token: str) -> None:
        answered = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, answered.set)
        await answered.wait()

    with pytest.raises(HandshakeRefused):
        async with SocketClient(BaseTokenAuthMiddleware(Desk.as_asgi, get_user=get_user), **TOKEN):
            pass
    (event,) = recorder.of(HandshakeEnded)
    assert event.seconds >= 0.04


async def test_a_cancelled_decision_is_told_as_failed(recorder: Recorder) -> None:
    asked = asyncio.Event()

    async def get_user(token: str) -> None:
        asked.set()
        await asyncio.Event().wait()

    app = BaseTokenAuthMiddleware(Desk.as_asgi, get_user=get_user)
    scope = SocketClient(app, **TOKEN).scope
    handshake = asyncio.create_task(app(scope, asyncio.Queue[Any]().get, asyncio.Queue[Any]().put))
    await asyncio.wait_for(asked.wait(), 20)
    handshake.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handshake
    (event,) = recorder.of(HandshakeEnded)
    assert (event.socket, event.outcome, event.status) == (None, "failed", 0)


@pytest.mark.parametrize(("socket", "error"), [(Moody, LookupError), (Nowhere, ConfigurationError)])
async def test_a_class_that_cannot_be_made_is_told_as_failed(
    recorder: Recorder, socket: type[BaseSocketServer], error: type[Exception]
) -> None:
    client = SocketClient(socket.as_asgi)
    events = asyncio.Queue[Any]()
    events.put_nowait({"type": "websocket.connect"})
    with pytest.raises(error):
        await socket.as_asgi(client.scope, events.get, asyncio.Queue[Any]().put)
    (event,) = recorder.of(HandshakeEnded)
    assert (event.socket, event.outcome, event.status) == (socket, "failed", 0)


async def test_the_metric_counts_refusals_by_status_and_its_books_are_right(members: Any) -> None:
    measurements = Measurements()
    add_observer(measurements)
    try:
        router = URLRouter([path("ws/", secure(Desk.as_asgi, require_user=True))])
        for where in ("/ws/", "/ws/", "/other/"):
            with pytest.raises(HandshakeRefused):
                async with SocketClient(router, where):
                    pass
        readable = SocketClient(router, "/ws/", subprotocols=[V1])
        async with readable:
            assert await readable.receive_close() == 4401
        async with SocketClient(URLRouter([path("ws/", Desk.as_asgi)]), "/ws/"):
            handshakes = measurements.counts("handshakes")
            assert handshakes == {
                ("refused", "403"): 3,
                ("refused", "404"): 1,
                ("accepted", "101"): 1,
            }
            assert sum(measurements.counts("connections_closed").values()) == 0
    finally:
        remove_observer(measurements)
    assert sum(measurements.counts("connections_closed").values()) == 1
