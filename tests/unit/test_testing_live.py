"""The server for tests with real browsers starts, serves and stops."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from django_sockets.broadcaster import Broadcaster
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import LiveSocketServer, capture_broadcasts, override_broker
from django_sockets.testing.live import STOP_SECONDS
from support.offers_frames import offers_frames


class Member(BaseSocketServer):
    async def connect(self) -> None:
        await self.async_subscribe("room")
        await self.async_send("ready")

    async def receive(self, data: Any) -> None:
        await self.async_broadcast("room", data)


def test_it_shares_the_broker_and_the_captures_of_the_test() -> None:
    with (
        override_broker(),
        capture_broadcasts() as captured,
        LiveSocketServer(Member.as_asgi) as server,
        connect(server.ws_url, proxy=None) as browser,
    ):
        assert browser.recv(timeout=5) == '"ready"'
        Broadcaster().broadcast("room", "from the test")
        assert browser.recv(timeout=5) == '"from the test"'
        assert offers_frames(browser)
        browser.send('"from the browser"')
        assert browser.recv(timeout=5) == '"from the browser"'
    assert captured == [("room", "from the test"), ("room", "from the browser")]


def test_it_stops_in_time_with_open_sockets_and_a_handler_that_hangs() -> None:
    hanging = threading.Event()

    class Hangs(BaseSocketServer):
        async def connect(self) -> None:
            hanging.set()
            await asyncio.Event().wait()

    with override_broker():
        server = LiveSocketServer(Hangs.as_asgi)
        server.start()
        with connect(server.ws_url, proxy=None) as browser:
            assert hanging.wait(5)
            started = time.monotonic()
            server.stop()
            assert time.monotonic() - started < STOP_SECONDS, "it had to be forced"
            with pytest.raises(ConnectionClosed):
                browser.recv(timeout=5)
        with pytest.raises(OSError):  # noqa: PT011 - which one differs between systems
            connect(server.ws_url, proxy=None)
    assert "django_sockets live server" not in [thread.name for thread in threading.enumerate()]


def test_an_application_that_does_not_start_is_said() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no licence"})

    with pytest.raises(RuntimeError, match="did not start"):
        LiveSocketServer(broken).start()


def test_without_uvicorn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(RuntimeError, match=r"pip install 'django-sockets\[runserver\]>=4"):
        LiveSocketServer(Member.as_asgi).start()
