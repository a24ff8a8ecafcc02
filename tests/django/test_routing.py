"""Routers pass each connection to its application. Unknown paths cause no error in the server."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import MutableMapping
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIRequest
from django.urls import include, path, re_path, register_converter

from django_sockets import ConfigurationError, open_hub
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient, override_broker
from django_sockets.testing.client import HandshakeRefused
from django_sockets.utils import ProtocolTypeRouter, URLRouter, run_in_thread

WAIT_SECONDS = 10


class Where(BaseSocketServer):
    """Sends the route of the client."""

    async def connect(self) -> None:
        await self.async_send([type(self).__name__, self.scope["url_route"]])


class Other(Where):
    pass


class Evens:
    """A converter: even numbers."""

    regex = "[0-9]+"

    def to_python(self, value: str) -> int:
        if int(value) % 2:
            raise ValueError(value)
        return int(value)

    def to_url(self, value: int) -> str:
        return str(value)


register_converter(Evens, "evens")


class Middleware:
    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app({**scope, "passed": True}, receive, send)


ROUTES: list[Any] = [
    path("ws/", Where.as_asgi),
    path("bare", Where.as_asgi),
    path("rooms/<int:room>/", Where.as_asgi, {"extra": "given"}),
    path("evens/<evens:number>/", Where.as_asgi),
    path("evens/<slug:word>/", Other.as_asgi),
    re_path(r"^numbers/(\d+)/(\d+)/$", Where.as_asgi),
    re_path(r"^named/(?P<word>\w+)/$", Where.as_asgi),
    path("included/<slug:team>/", include([path("chat/<int:room>/", Where.as_asgi)])),
    path("tree/<slug:team>/", URLRouter([path("<int:room>/", Where.as_asgi)])),
    path("tree/<slug:team>/", Middleware(URLRouter([path("<slug:word>/", Other.as_asgi)]))),
    re_path(r"^deep/(\d+)/", URLRouter([path("a/", URLRouter([path("", Where.as_asgi)]))])),
]


async def reached(application: Any, where: str, **scope: Any) -> Any:
    with override_broker():
        async with SocketClient(application, where, scope=scope) as client:
            return await client.receive_json()


@pytest.mark.parametrize(
    ("where", "name", "args", "kwargs"),
    [
        ("/ws/", "Where", [], {}),
        ("/ws", "Where", [], {}),
        ("/bare", "Where", [], {}),
        ("/bare/", "Where", [], {}),
        ("/rooms/7/", "Where", [], {"room": 7, "extra": "given"}),
        ("/rooms/7", "Where", [], {"room": 7, "extra": "given"}),
        ("/evens/8/", "Where", [], {"number": 8}),
        ("/evens/9/", "Other", [], {"word": "9"}),
        ("/numbers/1/2/", "Where", ["1", "2"], {}),
        ("/named/w/", "Where", [], {"word": "w"}),
        ("/included/red/chat/3/", "Where", [], {"team": "red", "room": 3}),
        ("/included/red/chat/3", "Where", [], {"team": "red", "room": 3}),
        ("/tree/red/3/", "Where", [], {"team": "red", "room": 3}),
        ("/tree/red/three/", "Other", [], {"team": "red", "word": "three"}),
        ("/tree/red/three", "Other", [], {"team": "red", "word": "three"}),
        ("/deep/5/a/", "Where", ["5"], {}),
        ("/deep/5/a", "Where", ["5"], {}),
    ],
)
async def test_a_path_reaches_its_socket(
    where: str, name: str, args: list[str], kwargs: dict[str, Any]
) -> None:
    application = ProtocolTypeRouter({"websocket": URLRouter(ROUTES)})
    assert await reached(application, where) == [name, {"args": args, "kwargs": kwargs}]


UNKNOWN = [
    "/",
    "",
    "/w",
    "/ws/more/",
    "/tree/red/",
    "/tree/red/3/4/",
    "/included/red/",
    "/rooms/x/",
]


@pytest.mark.parametrize("where", UNKNOWN)
@pytest.mark.parametrize("extension", [True, False])
async def test_an_unknown_path_is_refused_and_is_no_error_of_the_server(
    where: str, extension: bool
) -> None:
    scope = {"type": "websocket", "path": where, "headers": []}
    if extension:
        scope["extensions"] = {"websocket.http.response": {}}
    sent = await events(URLRouter(ROUTES), scope, [{"type": "websocket.connect"}])
    if extension:
        assert [event.get("status") for event in sent] == [404, None]
        assert sent[1] == {"type": "websocket.http.response.body", "body": b""}
    else:
        assert sent == [{"type": "websocket.close", "code": 1000}]


async def test_a_client_that_left_before_the_refusal_is_sent_nothing() -> None:
    scope = {"type": "websocket", "path": "/nowhere", "headers": []}
    gone = [{"type": "websocket.disconnect", "code": 1006}]
    assert await events(URLRouter(ROUTES), scope, gone) == []


@pytest.mark.parametrize(
    ("root", "where", "found"),
    [
        ("/app", "/app/ws/", True),
        ("/app/", "/app/ws/", True),
        ("/app", "/ws/", True),  # Servers before ASGI 3 leave it out.
        ("/w", "/ws/", True),
        ("/app", "/application/ws/", False),
    ],
)
async def test_below_a_mount_point_the_routes_stay_the_same(
    root: str, where: str, found: bool
) -> None:
    if found:
        assert (await reached(URLRouter(ROUTES), where, root_path=root))[0] == "Where"
    else:
        with pytest.raises(HandshakeRefused):
            await reached(URLRouter(ROUTES), where, root_path=root)


SCRIPT_NAMES = [
    # FORCE_SCRIPT_NAME, root_path, path, found
    ("/app", "", "/app/ws/", True),
    ("/app/", "", "/app/ws/", True),
    ("/app", "", "/ws/", True),  # The proxy has taken it away.
    ("/app", "/other", "/app/ws/", True),
    ("/app", "/other", "/other/ws/", False),
    ("/app", "/app", "/app/ws/", True),
    ("", "/other", "/other/ws/", True),
    (None, "/other", "/other/ws/", True),
    (None, "", "/app/ws/", False),
    ("/app", "", "/application/ws/", False),
    ("/a/b", "", "/a/b/ws/", True),
]


@pytest.mark.parametrize(("forced", "root", "where", "found"), SCRIPT_NAMES)
async def test_the_script_name_is_taken_away_as_django_does_it(
    forced: str | None, root: str, where: str, found: bool, settings_of: Any
) -> None:
    settings_of(FORCE_SCRIPT_NAME=forced)
    scope = {"type": "http", "method": "GET", "path": where, "root_path": root, "headers": []}
    path = ASGIRequest(scope, io.BytesIO()).path_info
    if forced != "/app/" and "application" not in where:
        assert (f"/{path.lstrip('/')}" == "/ws/") is found  # What Django makes of it.
    if found:
        assert (await reached(URLRouter(ROUTES), where, root_path=root))[0] == "Where"
    else:
        with pytest.raises(HandshakeRefused):
            await reached(URLRouter(ROUTES), where, root_path=root)


async def events(
    application: Any, scope: dict[str, Any], incoming: list[dict[str, Any]]
) -> list[MutableMapping[str, Any]]:
    """What an application sends when these events come in."""
    sent: list[MutableMapping[str, Any]] = []
    waiting = iter(incoming)

    async def receive() -> MutableMapping[str, Any]:
        return next(waiting)

    async def send(event: MutableMapping[str, Any]) -> None:
        sent.append(event)

    await application(scope, receive, send)
    return sent


LIFESPAN = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]


async def test_shutdown_of_the_server_closes_the_broker() -> None:
    router = ProtocolTypeRouter({"websocket": URLRouter(ROUTES)})
    with override_broker() as config:
        async with SocketClient(router, "/ws/") as client:
            await client.receive_json()
        from django_sockets.runtime import shared_hub

        hub = shared_hub(config)
        assert not hub.closed
        sent = await events(router, {"type": "lifespan"}, LIFESPAN)
        assert hub.closed
    names = [event["type"] for event in sent]
    assert names == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_lifespan_entry_of_the_application_wins() -> None:
    async def own(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "own"})

    router = ProtocolTypeRouter({"lifespan": own})
    assert await events(router, {"type": "lifespan"}, LIFESPAN) == [{"type": "own"}]


async def test_a_protocol_without_an_entry_is_refused_cleanly() -> None:
    router = ProtocolTypeRouter({})
    http = await events(router, {"type": "http", "path": "/"}, [])
    assert http[0]["status"] == 404
    socket = {"type": "websocket", "path": "/"}
    refused = await events(router, socket, [{"type": "websocket.connect"}])
    assert refused == [{"type": "websocket.close", "code": 1000}]
    assert await events(router, {"type": "mqtt"}, []) == []


async def test_http_can_be_routed_too() -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "page"})

    router = URLRouter([re_path(r"^pages/", page)])
    assert await events(router, {"type": "http", "path": "/pages/1"}, []) == [{"type": "page"}]
    assert (await events(router, {"type": "http", "path": "/other"}, []))[0]["status"] == 404


def test_a_route_that_cannot_work_is_said_at_start() -> None:
    with pytest.raises(ConfigurationError, match=r"write Where\.as_asgi"):
        URLRouter([path("ws/", Where)])  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="not tuple"):
        URLRouter([("ws/", Where.as_asgi)])


def test_the_routers_work_without_configured_django() -> None:
    script = """
import asyncio
from django.urls import include, path
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient
from django_sockets.utils import ProtocolTypeRouter, URLRouter, run_in_thread

class Echo(BaseSocketServer):
    async def receive(self, data):
        await self.async_send(data)

app = ProtocolTypeRouter({"websocket": URLRouter([path("a/", include([path("", Echo.as_asgi)]))])})

async def main():
    async with SocketClient(app, "/a/") as client:
        await client.send_json("hello")
        print(await client.receive_json())

asyncio.run(main())
run_in_thread(print, "from a thread").join()
from django.conf import settings
assert not settings.configured
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (ended.stdout, ended.stderr) == ("hello\nfrom a thread\n", "")


def test_run_in_thread_returns_at_once_and_says_what_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go, got = threading.Event(), []

    def work(number: int, *, name: str) -> None:
        assert go.wait(WAIT_SECONDS)
        got.append((number, name))
        raise RuntimeError("after all")

    thread = run_in_thread(work, 1, name="one")
    assert thread.daemon
    assert thread.is_alive()
    go.set()
    thread.join(WAIT_SECONDS)
    assert got == [(1, "one")]
    assert "run_in_thread: work failed" in caplog.text
    assert "after all" in caplog.text


async def test_what_the_routers_carry_is_heard_by_everyone() -> None:
    class Room(BaseSocketServer):
        async def connect(self) -> None:
            await self.async_subscribe(f"room:{self.scope['url_route']['kwargs']['room']}")
            await self.async_send("ready")

    router = URLRouter([path("rooms/<int:room>", Room.as_asgi)])
    with override_broker() as config:
        async with SocketClient(router, "/rooms/1") as one, SocketClient(router, "/rooms/2") as two:
            for client in (one, two):
                assert await client.receive_json() == "ready"
            async with open_hub(config) as hub:
                await hub.publish("room:1", b'"for one"', is_text=True)
            assert await one.receive_json() == "for one"
            assert await two.receive_nothing()
