"""`as_asgi` and `as_asgi()` are the same application."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from asgiref.compatibility import guarantee_single_callable
from django.urls import include, path, re_path
from hypercorn.utils import is_asgi

from django_sockets.integration import ProtocolTypeRouter, URLRouter
from django_sockets.middleware import OriginMiddleware
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient


class Echo(BaseSocketServer):
    config = "memory://as-asgi"

    async def receive(self, data: Any) -> None:
        await self.async_send(data)


SPELLINGS: dict[str, Callable[[], Any]] = {
    "as_asgi": lambda: Echo.as_asgi,
    "as_asgi()": lambda: Echo.as_asgi(),
    "as_asgi()()": lambda: Echo.as_asgi()(),
}
PLACES: dict[str, Callable[[Any], Any]] = {
    "bare": lambda app: app,
    "path": lambda app: URLRouter([path("ws/", app)]),
    "re_path": lambda app: URLRouter([re_path(r"^ws/$", app)]),
    "include": lambda app: URLRouter([path("", include([path("ws/", app)]))]),
    "nested": lambda app: URLRouter([path("", URLRouter([path("ws/", app)]))]),
    "protocol": lambda app: ProtocolTypeRouter({"websocket": app}),
    "middleware": lambda app: OriginMiddleware(app),
    "middleware in a route": lambda app: URLRouter([path("ws/", OriginMiddleware(app))]),
    "asgiref": guarantee_single_callable,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_both_spellings_serve(spelling: str, place: str) -> None:
    async with SocketClient(PLACES[place](SPELLINGS[spelling]()), "/ws/") as client:
        await client.send_json("hello")
        assert await client.receive_json() == "hello"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_servers_take_it_for_asgi_3(spelling: str) -> None:
    app = SPELLINGS[spelling]()
    config = uvicorn.Config(app, log_config=None)
    config.load()
    assert config.interface == "asgi3"
    assert is_asgi(app)
    assert asyncio.iscoroutinefunction(app.__call__)
    assert inspect.iscoroutinefunction(app.__call__)


def test_arguments_are_refused_with_the_place_where_they_belong() -> None:
    with pytest.raises(TypeError, match=r"as_asgi\(\) takes no arguments.* hosts: .* of Echo"):
        Echo.as_asgi(hosts=[])
    with pytest.raises(TypeError, match="missing 2 required"):
        Echo.as_asgi({"type": "websocket"})
