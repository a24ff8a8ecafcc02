"""Broadcasts without their sender, and subscriptions that a client asks for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from django_sockets import NotAllowed, SubscribeError, open_hub
from django_sockets.broadcaster import Broadcaster
from django_sockets.conf import load_config
from django_sockets.runtime import hooks, shared_hub
from django_sockets.runtime.worker_threads import WorkerPool
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient
from django_sockets.testing.servers import CacheServer

URL = "memory://own-channels"


class Chat(BaseSocketServer):
    config = URL

    async def connect(self) -> None:
        await self.async_subscribe(["room", "hall"])
        await self.async_send("joined")


class Async(Chat):
    async def receive(self, data: Any) -> None:
        await self.async_broadcast("room", data, exclude_self=True)


class Plain(Chat):
    def receive(self, data: Any) -> None:
        self.broadcast("room", data, exclude_self=True)


class AsyncMany(Chat):
    async def receive(self, data: Any) -> None:
        await self.async_broadcast_many(["room", "hall"], data, exclude_self=True)


class PlainMany(Chat):
    def receive(self, data: Any) -> None:
        self.broadcast_many(["room", "hall"], data, exclude_self=True)


class Handling(Async):
    async def async_handle_received_broadcast(self, channel: str, data: Any) -> None:
        await self.async_send(data)


class Encoding(Async):
    ws_encoder = staticmethod(lambda data: json.dumps(data))


@pytest.mark.parametrize("kind", [Async, Plain, AsyncMany, PlainMany, Handling, Encoding])
async def test_the_sender_alone_does_not_get_its_broadcast_back(kind: Any) -> None:
    copies = 2 if "Many" in kind.__name__ else 1
    async with (
        open_hub(URL) as elsewhere,
        elsewhere.subscribe("room") as events,
        SocketClient(kind.as_asgi) as sender,
        SocketClient(kind.as_asgi) as other,
    ):
        for client in (sender, other):
            assert await client.receive_json() == "joined"
        await sender.send_json("from one")
        for _ in range(copies):
            assert await other.receive_json() == "from one"
        assert (await events.__anext__()).payload == b'"from one"'  # type: ignore[union-attr]
        await other.send_json("from the other")
        for _ in range(copies):
            assert await sender.receive_json() == "from the other", "it got its own"
        assert await other.receive_nothing()


async def test_a_socket_that_waits_for_broadcasts_itself_is_left_out_too() -> None:
    socket = BaseSocketServer({}, config=URL)
    await socket.async_subscribe("room")
    await socket.async_broadcast("room", "own", exclude_self=True)
    await socket.async_broadcast("room", "for all")
    assert await socket.async_receive_broadcast() == ("room", "for all")


async def test_the_sender_is_left_out_across_a_server(valkey_server: CacheServer) -> None:
    class Real(Async):
        config = valkey_server.url

    async with (
        open_hub(valkey_server.url) as hub,
        hub.subscribe("room") as events,
        SocketClient(Real.as_asgi) as sender,
    ):
        assert await sender.receive_json() == "joined"
        await sender.send_json("out")
        event = await asyncio.wait_for(events.__anext__(), 5)
        assert event.payload == b'"out"'  # type: ignore[union-attr]
        await Broadcaster(valkey_server.url).async_broadcast("room", "next")
        assert await sender.receive_json() == "next"


class Asking(BaseSocketServer):
    """Subscribes to the channels of the client; those that begin with "open" are allowed."""

    config = URL
    max_subscriptions = 3

    async def may_subscribe(self, channel: str) -> bool:
        return channel.startswith("open")

    async def receive(self, data: Any) -> None:
        await self.async_subscribe_for_client(data)
        await self.async_send("subscribed")


class PlainAsking(Asking):
    """The same on worker threads."""

    def may_subscribe(self, channel: str) -> bool:  # type: ignore[override]
        return channel.startswith("open")

    def receive(self, data: Any) -> None:  # type: ignore[override]
        self.subscribe_for_client(data)
        self.send("subscribed")


class DecoratedAsking(PlainAsking):
    def may_subscribe(self, channel: str) -> Any:
        async def answer() -> bool:
            return channel.startswith("open")

        return answer()


class MixedAsking(PlainAsking):
    async def may_subscribe(self, channel: str) -> bool:  # type: ignore[override]
        return channel.startswith("open")


KINDS = [Asking, PlainAsking, DecoratedAsking, MixedAsking]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_gets_the_channels_that_the_class_allows(kind: Any) -> None:
    async with SocketClient(kind.as_asgi) as client:
        await client.send_json("open:1")
        assert await client.receive_json() == "subscribed"
        await client.send_json(["open:1", "open:2"])
        assert await client.receive_json() == "subscribed"
        await Broadcaster(URL).async_broadcast(["open:1", "open:2"], "heard")
        assert [await client.receive_json() for _ in range(2)] == ["heard"] * 2


WRONG = [
    "secret",
    ["open:1", "secret"],
    "",
    "open\n",
    "open*",
    "\x01control",
    None,
    1.5,
    {"open:1": 1},
    ["open:1", ["open:2"]],
    ["open:1", "open:2", "open:3", "open:4"],
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", WRONG)
async def test_what_is_not_allowed_subscribes_nothing_and_closes_with_1008(
    kind: Any, asked: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with SocketClient(kind.as_asgi) as client:
        await client.send_json("open:0")
        assert await client.receive_json() == "subscribed"
        await client.send_json(asked)
        assert await client.receive_close() == 1008
        assert not {"open:1", "secret"} & set(
            shared_hub(load_config(kind.config)).subscriptions.channels
        )
    assert not any(record.exc_info for record in caplog.records), "a traceback for each such frame"


async def test_a_client_that_collects_channels_is_stopped_at_the_limit() -> None:
    async with SocketClient(Asking.as_asgi) as client:
        for name in ("open:1", "open:2", "open:3", "open:3"):
            await client.send_json(name)
            assert await client.receive_json() == "subscribed"
        await client.send_json("open:4")
        assert await client.receive_close() == 1008


async def test_a_check_runs_even_if_all_threads_wait_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = WorkerPool(1)
    monkeypatch.setattr(hooks, "worker_pool", lambda settings: pool)
    async with SocketClient(PlainAsking.as_asgi) as client:
        await client.send_json("open")
        assert await client.receive_json() == "subscribed"


async def test_too_long_a_list_asks_the_class_nothing() -> None:
    asked: list[str] = []

    class Costly(Asking):
        async def may_subscribe(self, channel: str) -> bool:
            asked.append(channel)  # Perhaps one query each.
            return True

    async with SocketClient(Costly.as_asgi) as client:
        await client.send_json([str(number) for number in range(10_000)])
        assert await client.receive_close() == 1008
    assert asked == []


async def test_a_class_may_answer_a_refusal_and_go_on() -> None:
    class Answering(Asking):
        async def receive(self, data: Any) -> None:
            try:
                await self.async_subscribe_for_client(data)
            except NotAllowed as exc:
                await self.async_send({"refused": exc.channel})

    async with SocketClient(Answering.as_asgi) as client:
        await client.send_json(["open", "secret", "other"])
        assert await client.receive_json() == {"refused": "secret"}


async def test_without_may_subscribe_every_request_is_refused() -> None:
    socket = BaseSocketServer({}, config=URL)
    nobody = "BaseSocketServer has no may_subscribe, so every request of a client is .* 'room'"
    with pytest.raises(NotAllowed, match=nobody) as refused:
        await socket.async_subscribe_for_client("room")
    assert refused.value.channel == "room"
    with pytest.raises(NotAllowed, match=nobody):
        await asyncio.to_thread(socket.subscribe_for_client, ["room"])
    with pytest.raises(NotAllowed, match=": may_subscribe refused channel 'secret'"):
        await Asking({}, config=URL).async_subscribe_for_client("secret")
    await socket.async_subscribe("room")  # The server itself may.


async def test_a_check_that_fails_allows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Asking):
        async def may_subscribe(self, channel: str) -> bool:
            raise LookupError("on purpose")

    async with SocketClient(Failing.as_asgi) as client:
        await client.send_json("open")
        assert await client.receive_close() == 1011
    assert "open" not in shared_hub(load_config(URL)).subscriptions.channels


async def test_the_servers_own_subscribe_still_says_too_many() -> None:
    socket = Asking({}, config=URL)
    with pytest.raises(SubscribeError):
        await socket.async_subscribe(["a", "b", "c", "d"])
