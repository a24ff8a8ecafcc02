"""Limits for a client: frames per second, length of the handshake, and idle time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from django_sockets import ConfigurationError
from django_sockets.conf import load_config
from django_sockets.connection.limits import TokenBucket
from django_sockets.runtime import shared_hub
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import HandshakeRefused, SocketClient


class Echo(BaseSocketServer):
    config = "memory://limits"

    async def receive(self, data: Any) -> None:
        await self.async_send(data)


def counted(counter: str) -> int:
    return shared_hub(load_config("memory://limits")).stats()[counter]


def test_a_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    bucket = TokenBucket(10, 3, now=100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(100.125) for _ in range(2)] == [True, False]
    assert [bucket.take(200.0) for _ in range(4)] == [True, True, True, False]


async def test_a_client_that_sends_too_often_is_closed_with_1008_and_no_other() -> None:
    class Limited(Echo):
        rate_limit_per_second = 5
        rate_limit_burst = 8

    async with SocketClient(Limited.as_asgi) as calm, SocketClient(Limited.as_asgi) as hasty:
        for number in range(8):
            await calm.send_json(number)
            assert await calm.receive_json() == number
        for number in range(20):
            await hasty.send_json(number)
        assert await hasty.receive_close() == 1008
        await asyncio.sleep(0.25)  # For another token.
        await calm.send_json("still here")
        assert await calm.receive_json() == "still here"
    assert counted("closed_rate_limit") == 1


@pytest.mark.parametrize("plain", [False, True])
async def test_a_handshake_that_takes_too_long_is_refused_with_503(plain: bool) -> None:
    class Slow(Echo):
        handshake_timeout_seconds = 0.1

        if plain:

            def authorize(self) -> None:
                time.sleep(0.5)
        else:

            async def authorize(self) -> None:
                await asyncio.sleep(30)

    began = time.monotonic()
    with pytest.raises(HandshakeRefused) as refused:
        await SocketClient(Slow.as_asgi).connect()
    assert refused.value.status == 503
    assert time.monotonic() - began < 0.45
    assert counted("handshake_timeouts") == 1
    assert counted("sockets") == 0


async def test_an_accept_that_the_server_does_not_take_is_given_up() -> None:
    ended = []

    class Stuck(Echo):
        handshake_timeout_seconds = 0.1

        async def disconnect(self, code: int) -> None:
            ended.append(code)

    async def never(event: Any) -> None:
        await asyncio.Event().wait()

    incoming: asyncio.Queue[Any] = asyncio.Queue()
    incoming.put_nowait({"type": "websocket.connect"})
    scope = {"type": "websocket", "path": "/", "headers": []}
    await asyncio.wait_for(Stuck.as_asgi(scope, incoming.get, never), 5)
    assert ended == [1001]
    assert counted("handshake_timeouts") == 1


async def test_a_client_that_says_nothing_is_closed_and_one_that_is_served_is_not() -> None:
    class Quiet(Echo):
        idle_timeout_seconds = 0.3

        async def receive(self, data: Any) -> None:
            await asyncio.sleep(data)
            await self.async_send("slept")

    async with SocketClient(Quiet.as_asgi) as silent, SocketClient(Quiet.as_asgi) as busy:
        await busy.send_json(0.6)
        assert await silent.receive_close() == 4408
        assert await busy.receive_json() == "slept"
        assert await busy.receive_close() == 4408
    assert counted("closed_idle") == 2


@pytest.mark.parametrize(
    "attributes",
    [
        {"outbox_messages": 0},
        {"max_message_bytes": None},
        {"rate_limit_per_second": True},
        {"idle_timeout_seconds": "60"},
        {"handshake_timeout_seconds": -1},
        {"rate_limit_burst": 0.5},
    ],
)
def test_a_wrong_limit_is_refused_where_it_is_written(attributes: dict[str, Any]) -> None:
    (name,) = attributes
    with pytest.raises(ConfigurationError, match=name):
        type("Wrong", (BaseSocketServer,), attributes)


async def test_a_server_that_refuses_to_send_is_said_once_and_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Refused(Echo):
        async def connect(self) -> None:
            await self.async_send("hello")

    async def send(event: Any) -> None:
        if event["type"] == "websocket.send":
            raise RuntimeError("the connection is closed")

    scope = {"type": "websocket", "path": "/", "headers": []}
    with caplog.at_level("WARNING", "django_sockets"):
        for _ in range(20):
            incoming: asyncio.Queue[Any] = asyncio.Queue()
            incoming.put_nowait({"type": "websocket.connect"})
            await asyncio.wait_for(Refused.as_asgi(scope, incoming.get, send), 5)
    (record,) = caplog.records
    assert "the connection is closed" in record.getMessage()
    assert record.exc_info is None
