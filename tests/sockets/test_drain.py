"""A drain lets handlers finish, runs `disconnect` once, and closes the broker last."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from django_sockets import ConfigurationError, drain, local_hubs
from django_sockets.conf import Settings
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import HandshakeRefused, SocketClient


class Member(BaseSocketServer):
    config = "memory://drain"
    log: list[Any]

    def __init_subclass__(cls) -> None:
        cls.log = []

    async def connect(self) -> None:
        await self.async_subscribe("room")

    async def receive(self, data: Any) -> None:
        await asyncio.sleep(data)
        await self.async_broadcast("elsewhere", "the broker is still there")
        await self.async_send("handled")

    async def disconnect(self, code: int) -> None:
        self.log.append(code)


async def test_everybody_is_closed_with_1012_over_the_window_and_then_the_broker() -> None:
    class Room(Member):
        pass

    clients = [SocketClient(Room.as_asgi) for _ in range(20)]
    for client in clients:
        await client.connect()
    await clients[-1].send_json(0.3)
    await asyncio.sleep(0)
    hub = local_hubs()[0]
    assert hub.stats()["sockets"] == 20
    began = time.monotonic()
    draining = asyncio.ensure_future(drain(0.8))
    assert await clients[0].receive_close() == 1012
    assert not draining.done()
    with pytest.raises(HandshakeRefused) as refused:
        await SocketClient(Room.as_asgi).connect()
    assert refused.value.status == 503
    assert await clients[-1].receive_json() == "handled"
    codes = [await client.receive_close() for client in clients[1:]]
    assert codes == [1012] * 19
    assert 0.5 < time.monotonic() - began < 0.9
    await draining
    assert hub.closed
    assert Room.log == [1012] * 20
    stats = hub.stats()
    assert (stats["closed_drain"], stats["sockets"], stats["refused_draining"]) == (20, 0, 1)
    with pytest.raises(HandshakeRefused):
        await SocketClient(Room.as_asgi).connect()
    for client in clients:
        await client.close()
    assert Room.log == [1012] * 20


async def test_a_handler_that_does_not_end_keeps_its_broker_and_delays_no_other() -> None:
    class Room(Member):
        pass

    async with SocketClient(Room.as_asgi) as slow, SocketClient(Room.as_asgi) as other:
        await slow.send_json(1)
        await asyncio.sleep(0.05)
        hub = local_hubs()[0]
        assert await hub.drain(0.3) == 1
        assert await other.receive_close() == 1012
        assert await slow.receive_close() == 1012
        assert not hub.closed
    assert Room.log == [1012, 1012]


async def test_without_sockets_it_is_over_at_once() -> None:
    began = time.monotonic()
    await drain(10)
    assert time.monotonic() - began < 1


def test_the_window_is_a_setting_or_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().drain_window_seconds == 10
    assert Settings().drains_on_signal
    monkeypatch.setenv("DJANGO_SOCKETS_DRAIN_SECONDS", "2.5")
    monkeypatch.setenv("DJANGO_SOCKETS_DRAIN_ON_SIGNAL", "0")
    assert Settings().drain_window_seconds == 2.5
    assert not Settings().drains_on_signal
    assert Settings(drain_seconds=7).drain_window_seconds == 7
    assert Settings(drain_on_signal=True).drains_on_signal
    monkeypatch.setenv("DJANGO_SOCKETS_DRAIN_SECONDS", "soon")
    with pytest.raises(ConfigurationError, match="DJANGO_SOCKETS_DRAIN_SECONDS"):
        _ = Settings().drain_window_seconds
    with pytest.raises(ConfigurationError, match="drain_on_signal"):
        Settings(drain_on_signal="no")  # type: ignore[arg-type]
