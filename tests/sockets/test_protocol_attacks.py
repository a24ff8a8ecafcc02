"""A hostile client of the protocol is refused or bounded, and its neighbours see nothing of it.

Attacks with tokens are in tests/django/test_signed_channels.py.
"""

from __future__ import annotations

import asyncio
import json
import random
import string
import time
from collections.abc import Callable
from typing import Any

import pytest

from django_sockets.protocol.frames import read_frame
from django_sockets.protocol.problems import BrokenFrame, InvalidFrame
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient, SocketClosed
from support.slow_client import Reluctant

V1 = "django-sockets.v1"
FRAMES_READ = 85_000
FRAMES_SENT = 15_000


class Hall(BaseSocketServer):
    config = "memory://hall"
    max_subscriptions = 10
    asked = 0
    opened: asyncio.Event

    def may_subscribe(self, channel: str) -> Any:
        Hall.asked += 1
        return channel.startswith("room")

    async def receive(self, data: Any) -> Any:
        if data == "wait":
            await self.opened.wait()
        return data


@pytest.fixture(autouse=True)
def hall() -> None:
    Hall.asked = 0
    Hall.opened = asyncio.Event()


class Client(SocketClient):
    async def __aenter__(self) -> Client:
        await super().__aenter__()
        self.hello = (await self.receive_json())["hello"]
        assert await self.receive_json() == {"ready": {}}
        return self

    async def ask(self, request_id: int, **frame: Any) -> Any:
        await self.send_json({"id": request_id, **frame})
        answer = await self.receive_json()
        assert answer["id"] == request_id
        return answer

    async def echoes(self) -> None:
        assert await self.ask(1, message="alive") == {"id": 1, "ok": "alive"}


def client(app: type[BaseSocketServer] = Hall) -> Client:
    return Client(app.as_asgi, subprotocols=[V1], raise_errors=False)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition that has no event."""
    ends = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.005)


# Subscriptions


async def test_a_frame_with_too_many_entries_is_refused_before_the_hook_is_asked() -> None:
    async with client() as socket:
        assert socket.hello["limits"]["subscriptions"] == 10
        entries = [{"channel": f"room:{n}"} for n in range(11)]
        for kind in ("subscribe", "renew"):
            for entry in entries:
                entry["token"] = "none"
            if kind == "subscribe":
                entries = [{"channel": entry["channel"]} for entry in entries]
            answer = await socket.ask(1, **{kind: entries})
            assert answer["error"]["code"] == "limit"
        assert Hall.asked == 0


async def test_subscriptions_over_the_limit_are_refused_one_by_one() -> None:
    async with client() as socket, client() as neighbour:
        got = []
        for n in range(15):
            answer = await socket.ask(n, subscribe=[{"channel": f"room:{n}"}])
            got.append("error" not in answer["ok"]["channels"][0])
        assert got == [True] * 10 + [False] * 5
        again = await socket.ask(1, subscribe=[{"channel": "room:3"}, {"channel": "room:3"}])
        assert again["ok"]["channels"] == [{"channel": "room:3"}] * 2
        await socket.ask(1, unsubscribe=["room:3"])
        answer = await socket.ask(1, subscribe=[{"channel": "room:14"}, {"channel": "room:15"}])
        errors = [one.get("error", {}).get("code") for one in answer["ok"]["channels"]]
        assert errors == [None, "limit"]
        await neighbour.echoes()


async def test_made_up_and_huge_positions_are_refused() -> None:
    class Kept(Hall):
        config = {"url": "memory://kept", "history": {"": {"messages": 5, "seconds": 60}}}  # noqa: RUF012

    async with client(Kept) as socket, client(Kept) as neighbour:
        wrong = ["", "x", "A" * 512, "A" * 100_000, "\ud800", 2**60, -1, 1.5, True, [], {}]
        for number, since in enumerate(wrong):
            answer = await socket.ask(number, subscribe=[{"channel": "room", "since": since}])
            assert answer["ok"]["channels"][0]["error"]["code"] == "invalid_position", since
        first = await socket.ask(1, subscribe=[{"channel": "room"}])
        position = first["ok"]["channels"][0]["position"]
        forged = position[:-1] + ("A" if position[-1] != "A" else "E")
        await Kept({}).async_broadcast("room", 1)
        assert (await socket.receive_json())["data"] == 1
        for start in ({"since": forged}, {"replay": 10**15}):
            answer = await neighbour.ask(2, subscribe=[{"channel": "room", **start}])
            entry = answer["ok"]["channels"][0]
            assert "error" not in entry or entry["error"]["code"] == "invalid_position"
            while not await neighbour.receive_nothing():
                await neighbour.receive()
        await neighbour.echoes()


async def test_values_that_json_allows_and_python_refuses_are_refused() -> None:
    async with client() as socket:
        for value in ("1e999", "[" * 900 + "]" * 900, "9" * 5000, '"\\ud800"'):
            for number, text in enumerate(
                [
                    f'{{"id": 1, "subscribe": [{{"channel": "room", "x": {value}}}]}}',
                    f'{{"id": 1, "subscribe": [{{"channel": {value}}}]}}',
                    f'{{"id": 1, "unsubscribe": [{value}]}}',
                    f'{{"id": 1, "renew": [{{"channel": "room", "token": {value}}}]}}',
                    f'{{"id": 1, "message": {value}}}',
                ]
            ):
                await socket.send_text(text)
                answer = await socket.receive_json()
                assert answer["id"] == 1, (number, value)
        await socket.echoes()


# Requests


async def test_ten_thousand_requests_at_once_are_answered_and_few_are_open() -> None:
    async with client() as socket, client() as neighbour:
        await socket.send_json({"id": 0, "message": "wait"})
        await asyncio.sleep(0.15)  # The server reads ahead while a handler takes long.
        for n in range(1, 10_000):
            await socket.send_json({"id": n, "message": n})
        refused = [await socket.receive_json() for _ in range(10_000 - 8)]
        assert {frame["error"]["code"] for frame in refused} == {"too_many_requests"}
        assert sorted(frame["id"] for frame in refused) == list(range(8, 10_000))
        await neighbour.echoes()
        Hall.opened.set()
        answered = [(await socket.receive_json())["id"] for _ in range(8)]
        assert answered == list(range(8))
        await socket.echoes()


async def test_repeated_ids_are_told_and_the_open_request_is_answered_once() -> None:
    async with client() as socket:
        await socket.send_json({"id": 5, "message": "wait"})
        await asyncio.sleep(0.15)
        for _ in range(1000):
            await socket.send_json({"id": 5, "subscribe": [{"channel": "room"}]})
        for _ in range(1000):
            frame = await socket.receive_json()
            assert frame["error"]["code"] == "repeated_id"
            assert "id" not in frame
        assert Hall.asked == 0
        Hall.opened.set()
        assert await socket.receive_json() == {"id": 5, "ok": "wait"}
        assert await socket.receive_nothing()


async def test_a_client_that_pings_and_does_not_read_is_bounded() -> None:
    app: Any = Hall.as_asgi

    async def with_offer(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "subprotocols": [V1]}, receive, send)

    slow = Reluctant(with_offer)
    async with slow, client() as neighbour:
        await until(lambda: {"ready": {}} in slow.got)
        slow.stop_reading()
        for n in range(20_000):
            slow.say({"type": "websocket.receive", "text": f'{{"ping": {n}}}'})
            if n % 1000 == 0:
                await neighbour.echoes()
        await until(slow._to_app.empty)
        await neighbour.echoes()
        slow.go_on_reading()
        slow.say({"type": "websocket.receive", "text": '{"id": 1, "message": "end"}'})
        await until(lambda: {"id": 1, "ok": "end"} in slow.got)
        pongs = [frame for frame in slow.got if "pong" in frame]
        assert 0 < len(pongs) <= 2 * Hall.outbox_messages


async def test_pings_count_against_the_rate_limit() -> None:
    class Limited(Hall):
        rate_limit_per_second = 5.0

    async with client(Limited) as socket:
        for n in range(20):
            await socket.send_json({"ping": n})
        got = []
        while "bye" not in (frame := await socket.receive_json()):
            got.append(frame)
        assert frame == {"bye": {"code": 1008, "again": False}}
        assert await socket.receive_close() == 1008
        assert len(got) == 5


async def test_frames_that_are_too_large_or_binary_close_only_their_own_socket() -> None:
    async with client() as neighbour:
        async with client() as socket:
            text = json.dumps({"message": "é" * Hall.max_message_bytes}, ensure_ascii=False)
            await socket.send_text(text)
            assert await socket.receive_json() == {"bye": {"code": 1009, "again": False}}
            assert await socket.receive_close() == 1009
        async with client() as socket:
            await socket.send_bytes(b'{"message": 1}')
            assert (await socket.receive_json())["error"]["code"] == "invalid_frame"
            assert await socket.receive_close() == 1007
        async with client() as socket:
            await socket.send_text('{"message":' + "[" * 200_000)
            assert (await socket.receive_json())["error"]["code"] == "invalid_frame"
            await socket.send_json({"id": 1, "message": "not handled any more"})
            assert await socket.receive_close() == 1007
        await neighbour.echoes()


# Any frames

SEEDS = [
    '{"id": 1, "subscribe": [{"channel": "room:1", "since": "AAAA", "replay": 3}]}',
    '{"id": 2, "subscribe": [{"token": "abc:def"}, {"channel": "x", "presence": true}]}',
    '{"id": 3, "unsubscribe": ["room:1", "room:2"]}',
    '{"id": 4, "renew": [{"channel": "room:1", "token": "abc"}]}',
    '{"id": 5, "message": {"type": "x", "value": [1, 2.5, null, true, "é"]}}',
    '{"message": "text"}',
    '{"ping": 1}',
    '{"pong": 9007199254740991}',
]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**53,
    10**400,
    1e308,
    float("inf"),
    "",
    "room:1",
    "\x00",
    [],
    [[]],
    {},
    {"id": 1},
]
CHARACTERS = string.printable + '{}[]",:\\é\ud800\U0001f600'


def fuzzed(rng: random.Random) -> str:
    """A frame that is nearly one of the protocol."""
    seed = rng.choice(SEEDS)
    if rng.random() < 0.4:
        characters = list(seed)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(characters))
            characters[at : at + rng.randint(0, 2)] = rng.choice(CHARACTERS) * rng.randint(0, 2)
            if not characters:
                break
        return "".join(characters)
    return json.dumps(changed(json.loads(seed), rng), ensure_ascii=rng.random() < 0.5)


def changed(data: Any, rng: random.Random) -> Any:
    if rng.random() < 0.15:
        return rng.choice([*VALUES, "x" * rng.randint(0, 600)])
    if isinstance(data, dict):
        found = {key: changed(value, rng) for key, value in data.items() if rng.random() > 0.1}
        if rng.random() < 0.2:
            found[rng.choice(["id", "message", "subscribe", "ping", "new"])] = rng.choice(VALUES)
        return found
    if isinstance(data, list):
        return [changed(one, rng) for one in data for _ in range(rng.randint(0, 2))]
    return data


def test_any_text_is_read_or_refused(prepared_frames: bool) -> None:
    if prepared_frames:
        pytest.skip("it makes no difference here")
    rng = random.Random(20)
    results = {"read": 0, "broken": 0, "invalid": 0}
    for _ in range(FRAMES_READ):
        text = fuzzed(rng)
        try:
            frame = read_frame(text)
            assert frame.request_id is None or 0 <= frame.request_id < 2**53
            results["read"] += 1
        except BrokenFrame:
            results["broken"] += 1
        except InvalidFrame:
            results["invalid"] += 1
    assert min(results.values()) > FRAMES_READ // 20, results


async def test_any_frames_leave_the_server_and_the_neighbours_alive() -> None:
    rng = random.Random(21)
    Hall.opened.set()
    sent = answers = 0
    codes: set[int] = set()
    async with client() as neighbour:
        while sent < FRAMES_SENT:
            async with client() as socket:
                for _ in range(500):
                    await socket.send_text(fuzzed(rng).replace("\ud800", ""))
                    sent += 1
                await socket.send_json({"id": 77, "message": "last"})
                try:
                    while (await socket.receive()) != '{"id":77,"ok":"last"}':
                        answers += 1
                except SocketClosed as end:
                    codes.add(end.code)
                assert socket.errors == []
            await neighbour.echoes()
    assert codes == {1007}
    assert answers
