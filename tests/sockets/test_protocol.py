"""Clients of the protocol get what docs/client-protocol.md promises, and others see no change.

tests/django/test_protocol_vectors.py holds the conversations; this file tests what is between them.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from django_sockets import NotAllowed, RequestError
from django_sockets.delivery import message as message_module
from django_sockets.delivery import run as run_module
from django_sockets.protocol.negotiation import chosen
from django_sockets.protocol.timers import timers_on
from django_sockets.runtime import channel_api, shared_hub
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient, SocketClosed
from django_sockets.typed import on
from support.slow_client import Reluctant

V1 = "django-sockets.v1"


def url() -> str:
    return f"memory://protocol-{random.getrandbits(48):x}"


def client(app: Any, *offered: str, **options: Any) -> SocketClient:
    return SocketClient(app.as_asgi, subprotocols=offered or (V1,), **options)


async def opened(socket: SocketClient) -> dict[str, Any]:
    """Read hello and ready."""
    hello: dict[str, Any] = await socket.receive_json()
    assert await socket.receive_json() == {"ready": {}}
    return hello["hello"]


async def ask(socket: SocketClient, request_id: int, **frame: Any) -> Any:
    await socket.send_json({"id": request_id, **frame})
    answer = await socket.receive_json()
    assert answer.pop("id") == request_id
    return answer


def room(**attributes: Any) -> Any:
    """A class whose clients may subscribe to anything."""

    async def may_subscribe(self: Any, channel: str) -> bool:
        return True

    names = {"config": url(), "may_subscribe": may_subscribe, **attributes}
    return type("Room", (BaseSocketServer,), names)


# The choice of the protocol


@pytest.mark.parametrize(
    ("offered", "accepted"),
    [
        ([V1], V1),
        (["chat", "django-sockets.v9", V1, "django-sockets.v0"], V1),
        (["django-sockets.v2"], None),
        (["django-sockets.v01", "django-sockets.v1x", "Django-Sockets.v1"], None),
        ([], None),
    ],
)
def test_the_highest_version_that_both_know_is_chosen(
    offered: list[str], accepted: str | None
) -> None:
    assert chosen(offered) == accepted


async def test_the_protocol_comes_before_the_protocol_of_the_class() -> None:
    app = room(subprotocol="chat")
    async with client(app, "chat", V1) as socket:
        assert socket.subprotocol == V1
        await opened(socket)
    async with client(app, "chat") as socket:
        assert socket.subprotocol == "chat"
        assert await socket.receive_nothing()


@pytest.mark.parametrize("option", ["ws_encoder", "ws_decoder"])
async def test_a_class_with_an_encoding_of_its_own_does_not_speak_it(option: str) -> None:
    app = room(**{option: json.dumps if option == "ws_encoder" else json.loads})
    async with client(app) as socket:
        assert socket.subprotocol is None
        assert await socket.receive_nothing()


async def test_clients_without_the_protocol_are_beside_those_with_it() -> None:
    async def connect(self: Any) -> None:
        await self.async_subscribe("room")

    app = room(connect=connect)
    async with client(app) as new, SocketClient(app.as_asgi) as raw:
        await opened(new)
        sender = app({})
        await sender.async_broadcast("room", {"n": 1})
        assert await raw.receive() == '{"n": 1}'
        assert await new.receive_json() == {"channel": "room", "data": {"n": 1}}
        await sender.async_broadcast("room", b"\x00\x01")
        assert await raw.receive() == b"\x00\x01"
        assert await new.receive() == b'\x00\x12{"channel":"room"}\x00\x01'


# Encode once


@pytest.mark.parametrize("size", [10, 5000], ids=["small", "compressed"])
async def test_a_broadcast_is_encoded_and_framed_once_for_all_clients(
    size: int, monkeypatch: pytest.MonkeyPatch, prepared_frames: bool
) -> None:
    counts: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    app = room()
    clients = [client(app) for _ in range(10)]
    others = [SocketClient(app.as_asgi) for _ in range(3)]
    for one in [*clients, *others]:
        await one.connect()
    for one in clients:
        await opened(one)
        assert await ask(one, 1, subscribe=[{"channel": "a"}, {"channel": "b"}])
    sender = app({})
    for module, name in [
        (channel_api, "encode"),
        (message_module, "channel_payload"),
        (message_module, "decode_json"),
        (message_module, "send_event"),
        (run_module, "deflate"),
    ]:
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    for number in range(5):
        await sender.async_broadcast(["a", "b"], [number, "x" * size])
    for one in clients:
        got = [await one.receive_json() for _ in range(10)]
        for channel in "ab":
            numbers = [frame["data"][0] for frame in got if frame["channel"] == channel]
            assert numbers == [0, 1, 2, 3, 4]
    assert counts["encode"] == 5
    assert counts["channel_payload"] == 10
    assert counts["decode_json"] == 0
    assert counts["send_event"] == (0 if prepared_frames else 10)
    assert counts["deflate"] == (10 if prepared_frames and size > 512 else 0)
    for one in [*clients, *others]:
        await one.close()


# Order


async def test_nothing_of_a_channel_comes_before_the_answer_to_its_subscribe() -> None:
    app = room()
    stop = asyncio.Event()
    sender = app({})

    async def publish() -> None:
        number = 0
        while not stop.is_set():
            await sender.async_broadcast("storm", number)
            number += 1
            await asyncio.sleep(0)

    storm = asyncio.create_task(publish())
    try:
        for _ in range(30):
            async with client(app) as socket:
                await opened(socket)
                await socket.send_json({"id": 1, "subscribe": [{"channel": "storm"}]})
                first = await socket.receive_json()
                assert first == {"id": 1, "ok": {"channels": [{"channel": "storm"}]}}
                numbers = [(await socket.receive_json())["data"] for _ in range(20)]
                assert numbers == list(range(numbers[0], numbers[0] + 20))
                await socket.send_json({"id": 2, "unsubscribe": ["storm"]})
                while "channel" in (frame := await socket.receive_json()):
                    pass
                assert frame == {"id": 2, "ok": {}}
                assert await socket.receive_nothing(0.01)
    finally:
        stop.set()
        await storm


async def test_ready_follows_connect_or_the_end_of_the_hold() -> None:
    go_on = asyncio.Event()

    async def connect(self: Any) -> None:
        await self.async_subscribe("room")
        await self.async_send("state")
        await go_on.wait()
        await self.async_send("late")

    app = room(connect=connect, hold_seconds=0.1)
    async with client(app) as socket:
        assert "hello" in await socket.receive_json()
        assert await socket.receive_json() == {"data": "state"}
        await app({}).async_broadcast("room", 1)
        assert await socket.receive_json() == {"ready": {}}
        assert await socket.receive_json() == {"channel": "room", "data": 1}
        go_on.set()
        assert await socket.receive_json() == {"data": "late"}
        assert await socket.receive_nothing()


async def test_ready_comes_without_a_hold_and_not_after_a_close() -> None:
    async def connect(self: Any) -> None:
        await self.async_send("state")

    async with client(room(connect=connect, hold_broadcasts=False)) as socket:
        assert "hello" in await socket.receive_json()
        assert await socket.receive_json() == {"data": "state"}
        assert await socket.receive_json() == {"ready": {}}

    async def refuse(self: Any) -> None:
        await self.async_close(4403)

    async with client(room(connect=refuse)) as socket:
        assert "hello" in await socket.receive_json()
        assert await socket.receive_json() == {"bye": {"code": 4403, "again": False}}
        with pytest.raises(SocketClosed):
            await socket.receive()


# Gaps and hooks


async def test_a_gap_is_told_before_the_hook_of_the_class_runs() -> None:
    async def gap(self: Any, channels: Any, reason: str) -> None:
        await self.async_send({"state": list(channels)})

    app = room(gap=gap)
    async with client(app) as socket:
        await opened(socket)
        await ask(socket, 1, subscribe=[{"channel": "room"}])
        hub = shared_hub(app({})._connection.config)
        hub.lost(["room"], "missed")
        await app({}).async_broadcast("room", 2)
        got = [await socket.receive_json() for _ in range(3)]
        assert got == [
            {"gap": ["room"], "reason": "missed"},
            {"data": {"state": ["room"]}},
            {"channel": "room", "data": 2},
        ]


async def test_a_class_with_a_broadcast_hook_keeps_the_channel_by_super() -> None:
    async def hook(self: Any, channel: str, data: Any) -> None:
        if data != "secret":
            await super(app, self).async_handle_received_broadcast(channel, data)

    config = {"url": url(), "history": {"kept": {"messages": 9, "seconds": 60}}}
    app = room(async_handle_received_broadcast=hook, config=config)
    async with client(app) as socket:
        await opened(socket)
        await ask(socket, 1, subscribe=[{"channel": "room"}, {"channel": "kept"}])
        for data in ("secret", "public"):
            await app({}).async_broadcast("room", data)
        assert await socket.receive_json() == {"channel": "room", "data": "public"}
        await app({}).async_broadcast("kept", 1)
        kept = await socket.receive_json()
        hub = shared_hub(app({})._connection.config)
        assert kept == {"channel": "kept", "data": 1, "position": await hub.position("kept")}


async def test_limits_that_are_infinite_are_numbers_for_the_client() -> None:
    app = room(max_message_bytes=float("inf"), max_subscriptions=float("inf"))
    async with client(app) as socket:
        limits = (await opened(socket))["limits"]
        assert limits == {"message_bytes": 2**53 - 1, "requests": 8, "subscriptions": 2**53 - 1}
        assert await ask(socket, 1, subscribe=[{"channel": "room"}])


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
async def test_messages_that_are_dropped_for_a_slow_client_leave_a_gap(policy: str) -> None:
    app = room(overflow=policy, outbox_messages=5)
    slow = Reluctant(app.as_asgi)
    original = slow._application

    async def with_offer(scope: Any, receive: Any, send: Any) -> None:
        await original({**scope, "subprotocols": [V1]}, receive, send)

    slow._application = with_offer
    async with slow:
        subscribe = json.dumps({"id": 1, "subscribe": [{"channel": "room"}]})
        slow.say({"type": "websocket.receive", "text": subscribe})
        await until(lambda: any("ok" in frame for frame in slow.got))
        slow.stop_reading()
        sender = app({})
        for number in range(40):
            await sender.async_broadcast("room", number)
        await asyncio.sleep(0.3)
        for number in range(40, 60):
            await sender.async_broadcast("room", number)
        slow.go_on_reading()
        await until(lambda: any("gap" in frame for frame in slow.got))
        await sender.async_broadcast("room", "after")
        await until(lambda: {"channel": "room", "data": "after"} in slow.got)
        stream = [frame for frame in slow.got if "data" in frame or "gap" in frame]
        last = -1
        for before, frame in zip([{}, *stream], stream, strict=False):
            number = frame.get("data")
            if isinstance(number, int):
                assert number > last
                assert number == last + 1 or "gap" in before, (before, frame)
                last = number
        assert {"gap": ["room"], "reason": "overflow"} in stream


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition that has no event."""
    ends = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.005)


# Requests


async def test_an_own_error_hook_gets_the_error_of_a_request_and_the_socket_stays() -> None:
    errors: list[Exception] = []

    async def receive(self: Any, data: Any) -> None:
        raise {"key": KeyError("k"), "right": NotAllowed("a reason"), "busy": BUSY}[data]

    app = room(receive=receive, error=lambda self, exc: errors.append(exc))
    async with client(app) as socket:
        await opened(socket)
        for number, (data, code) in enumerate(
            [("key", "internal"), ("right", "forbidden"), ("busy", "busy")]
        ):
            answer = await ask(socket, number, message=data)
            assert answer["error"]["code"] == code
            assert "reason" not in json.dumps(answer)
        assert [type(exc) for exc in errors] == [KeyError, NotAllowed]
        await socket.send_json({"message": "key"})
        await until(lambda: len(errors) == 3)
        await socket.send_json({"message": "busy"})
        error = {"code": "busy", "message": "", "temporary": True}
        assert await socket.receive_json() == {"error": error}
    async with SocketClient(app.as_asgi) as raw:
        await raw.send_json("busy")
        assert await raw.receive_json() == {"error": {"type": "busy", "message": ""}}


BUSY = RequestError("busy", temporary=True)


async def test_an_own_decode_error_hook_gets_messages_but_no_requests() -> None:
    seen: list[Exception] = []
    names = {"decode_error": lambda self, exc: seen.append(exc)}

    class Typed(room(**names)):  # type: ignore[misc]
        @on("add")
        def add(self, message: dict[str, int]) -> int:
            return sum(value for value in message.values())

    async with client(Typed) as socket:
        await opened(socket)
        answer = await ask(socket, 1, message={"type": "add"})
        assert answer["error"]["code"] == "invalid_message"
        assert seen == []
        await socket.send_json({"message": {"type": "add"}})
        await until(lambda: seen)


async def test_a_result_without_a_json_form_is_an_internal_error() -> None:
    app = room(receive=lambda self, data: object() if data else b"bytes")
    async with client(app, raise_errors=False) as socket:
        await opened(socket)
        for number in (0, 1):
            answer = await ask(socket, number, message=number)
            assert answer["error"]["code"] == "internal"


async def test_text_that_javascript_has_cut_inside_a_character_is_read() -> None:
    app = room(receive=lambda self, data: data)
    async with client(app) as socket:
        await opened(socket)
        await socket.send_text('{"id": 1, "message": {"text": "\\ud83d"}}')
        assert await socket.receive() == '{"id":1,"ok":{"text": "\\ud83d"}}'


@pytest.mark.parametrize(
    ("text", "data"), [('{"a": 1}', {"a": 1}), ("hello", "hello"), ('say "hi"', 'say "hi"')]
)
async def test_text_that_the_application_has_encoded_becomes_valid_json(
    text: str, data: Any
) -> None:
    async def connect(self: Any) -> None:
        await self.async_send(text, raw=True)

    async with client(room(connect=connect)) as socket:
        await socket.receive()
        assert await socket.receive_json() == {"data": data}


# Subscriptions


async def test_a_class_without_may_subscribe_refuses() -> None:
    class Plain(BaseSocketServer):
        config = url()

    async with client(Plain) as socket:
        await opened(socket)
        answer = await ask(socket, 1, subscribe=[{"channel": "room"}])
        assert answer["ok"]["channels"][0]["error"]["code"] == "forbidden"
        await Plain({}).async_broadcast("room", 1)
        assert await socket.receive_nothing()


async def test_a_may_subscribe_that_fails_refuses_one_channel_only() -> None:
    def may_subscribe(self: Any, channel: str) -> bool:
        if channel == "bad":
            raise ValueError("the inside")
        return True

    app = room(may_subscribe=may_subscribe)
    async with client(app, raise_errors=False) as socket:
        await opened(socket)
        answer = await ask(socket, 1, subscribe=[{"channel": "bad"}, {"channel": "good"}])
        bad, good = answer["ok"]["channels"]
        assert bad["error"]["code"] == "internal"
        assert "inside" not in json.dumps(answer)
        assert good == {"channel": "good"}


async def test_the_client_does_not_end_a_subscription_of_the_application() -> None:
    async def connect(self: Any) -> None:
        await self.async_subscribe("own")

    app = room(connect=connect)
    async with client(app) as socket:
        await opened(socket)
        await ask(socket, 1, subscribe=[{"channel": "own"}, {"channel": "other"}])
        await ask(socket, 2, unsubscribe=["own", "other", "never", "other"])
        for channel in ("other", "own"):
            await app({}).async_broadcast(channel, 1)
        assert await socket.receive_json() == {"channel": "own", "data": 1}
        assert await socket.receive_nothing()


async def test_the_timers_of_clients_that_have_left_are_gone() -> None:
    app = room()
    before = len(timers_on(asyncio.get_running_loop()))
    sockets = [client(app) for _ in range(20)]
    for socket in sockets:
        await socket.connect()
        await opened(socket)
    assert len(timers_on(asyncio.get_running_loop())) == before + 20
    for socket in sockets:
        await socket.close()
    assert len(timers_on(asyncio.get_running_loop())) == before


async def test_a_channel_that_the_socket_has_already_is_not_recovered() -> None:
    async def connect(self: Any) -> None:
        await self.async_subscribe("room")

    config = {"url": url(), "history": {"room": {"messages": 9, "seconds": 60}}}
    app = room(connect=connect, config=config)
    async with client(app) as socket:
        await opened(socket)
        await app({}).async_broadcast("room", 1)
        position = (await socket.receive_json())["position"]
        await socket.send_json({"id": 1, "subscribe": [{"channel": "room", "since": position}]})
        frames = [await socket.receive_json()]
        while "id" not in frames[-1]:
            frames.append(await socket.receive_json())
        (entry,) = frames[-1]["ok"]["channels"]
        assert (entry["recovered"], entry["count"]) == (False, 0)
        assert frames[:-1] == []
        await app({}).async_broadcast("room", 2)
        assert (await socket.receive_json())["data"] == 2
