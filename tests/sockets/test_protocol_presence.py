"""Presence for clients of the protocol, beside what the conversations of the vectors hold.

If one of these fails, a page shows members that are gone, or misses members that are there.
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from django_sockets import ConfigurationError, NotAllowed
from django_sockets.connection.protocol_delivery import Arrival
from django_sockets.delivery import events as events_module
from django_sockets.delivery.events import Members
from django_sockets.delivery.hold import HOLD_MESSAGES
from django_sockets.delivery.presence_frames import MEMBERS_BYTES
from django_sockets.hub.hub import Hub
from django_sockets.runtime import shared_hub
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient
from django_sockets.typed import on
from support.slow_client import Reluctant

V1 = "django-sockets.v1"
ROOM = {"channel": "room", "presence": True}


def room(base: type[BaseSocketServer] = BaseSocketServer, **attributes: Any) -> Any:
    """A class whose clients may subscribe to anything."""

    async def may_subscribe(self: Any, channel: str) -> bool:
        return True

    url = f"memory://presence-{random.getrandbits(48):x}"
    return type("Room", (base,), {"config": url, "may_subscribe": may_subscribe, **attributes})


def client(app: Any, **options: Any) -> SocketClient:
    return SocketClient(app.as_asgi, subprotocols=[V1], **options)


def hub_of(app: Any) -> Hub:
    return shared_hub(app({})._connection.config)


async def opened(socket: SocketClient) -> None:
    """Read hello and ready."""
    await socket.receive_json()
    assert await socket.receive_json() == {"ready": {}}


async def ask(socket: SocketClient, request_id: int, **frame: Any) -> Any:
    await socket.send_json({"id": request_id, **frame})
    answer = await socket.receive_json()
    assert answer.pop("id") == request_id, answer
    return answer


async def watch(socket: SocketClient, request_id: int = 1) -> Any:
    """Subscribe to the room with presence. Returns the list."""
    answer = await ask(socket, request_id, subscribe=[ROOM])
    return answer["ok"]["channels"][0]["presence"]


async def change(socket: SocketClient) -> Any:
    frame = await socket.receive_json()
    return frame["presence"]


def joined(**members: Any) -> dict[str, Any]:
    return {"channel": "room", "joined": members, "left": {}}


def left(**members: Any) -> dict[str, Any]:
    return {"channel": "room", "joined": {}, "left": members}


async def test_a_socket_that_tracks_itself_is_seen_by_others_and_by_itself() -> None:
    class Base(BaseSocketServer):
        async def connect(self) -> None:
            await self.async_track("room", {"n": 1}, key="me")

    app = room(Base)
    async with client(app) as one:
        await opened(one)
        assert await watch(one) == {"me": [{"n": 1}]}
        async with client(app) as two:
            await opened(two)
            assert await watch(two) == {"me": [{"n": 1}, {"n": 1}]}
            updated = {
                "channel": "room",
                "joined": {},
                "left": {},
                "updated": {"me": [{"n": 1}] * 2},
            }
            assert await change(one) == updated
        # Nobody sees a leave: the other entry of the key is still there.
        assert await change(one) == {**joined(), "updated": {"me": [{"n": 1}]}}


async def test_changes_keep_their_place_among_the_messages_of_the_channel() -> None:
    class Base(BaseSocketServer):
        @on("enter")
        async def enter(self, message: dict[str, Any]) -> None:
            await self.async_broadcast("room", "before")
            await self.async_track("room", key="me")
            await self.async_broadcast("room", "between")
            await self.async_untrack("room")
            await self.async_broadcast("room", "after")

    app = room(Base)
    async with client(app) as one, client(app) as two:
        for socket in (one, two):
            await opened(socket)
            assert await watch(socket) == {}
        await two.send_json({"message": {"type": "enter"}})
        assert [await one.receive_json() for _ in range(5)] == [
            {"channel": "room", "data": "before"},
            {"presence": joined(me=[None])},
            {"channel": "room", "data": "between"},
            {"presence": left(me=[None])},
            {"channel": "room", "data": "after"},
        ]


async def test_a_long_list_comes_in_frames_that_a_client_can_take() -> None:
    app = room()
    hub = hub_of(app)
    crowd: Members = {f"user {number}": [{"name": "x" * 400}] for number in range(600)}
    async with client(app) as one:
        await opened(one)
        for key, infos in crowd.items():
            await hub.track("room", key, infos[0])
        await one.send_json({"id": 1, "subscribe": [ROOM]})
        found: Members = {}
        parts = 0
        while True:
            text = await one.receive()
            assert len(text) < MEMBERS_BYTES + 1000
            frame = json.loads(text)
            if "presence" not in frame:
                break
            assert frame["presence"]["more"] is True
            found = {**found, **frame["presence"]["sync"]}
            parts += 1
        assert parts > 1
        assert frame["id"] == 1
        found = {**found, **frame["ok"]["channels"][0]["presence"]}
        assert found == crowd
        await hub.untrack("room", "user 7")
        assert await change(one) == left(**{"user 7": crowd["user 7"]})


async def test_the_frame_of_a_change_is_made_once_for_all_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def counted(*args: Any) -> Any:
        made.append(args)
        return original(*args)

    original = events_module.change_frames
    monkeypatch.setattr(events_module, "change_frames", counted)
    app = room()
    async with client(app) as one, client(app) as two, client(app) as three:
        for socket in (one, two, three):
            await opened(socket)
            await watch(socket)
        await hub_of(app).track("room", "a")
        for socket in (one, two, three):
            assert await change(socket) == joined(a=[None])
    assert len(made) == 1


async def test_without_presence_a_client_gets_no_changes() -> None:
    app = room()
    async with client(app) as one, client(app) as two:
        await opened(one)
        await opened(two)
        await watch(one)
        await ask(two, 1, subscribe=[{"channel": "room"}])
        await hub_of(app).track("room", "a")
        assert await change(one) == joined(a=[None])
        await app({}).async_broadcast("room", "last")
        assert await two.receive_json() == {"channel": "room", "data": "last"}


async def test_presence_ends_although_the_application_goes_on_with_the_channel() -> None:
    class Base(BaseSocketServer):
        async def connect(self) -> None:
            await self.async_subscribe("room")

    app = room(Base)
    async with client(app) as one, client(app) as two:
        for socket in (one, two):
            await opened(socket)
            await watch(socket)
        assert await ask(one, 2, unsubscribe=["room"]) == {"ok": {}}
        await hub_of(app).track("room", "a")
        assert await change(two) == joined(a=[None])
        await app({}).async_broadcast("room", "still here")
        assert await one.receive_json() == {"channel": "room", "data": "still here"}


async def test_presence_ends_when_the_application_ends_the_subscription() -> None:
    class Base(BaseSocketServer):
        @on("leave")
        async def leave(self, message: dict[str, Any]) -> None:
            await self.async_unsubscribe("room")
            await self.async_subscribe("room", presence=True)

        def presence(self, channel: str, joined: Members, left: Members) -> None:
            seen.append(joined)

    seen: list[Members] = []
    app = room(Base)
    async with client(app) as one, client(app) as two:
        for socket in (one, two):
            await opened(socket)
            await watch(socket)
        await one.send_json({"message": {"type": "leave"}})
        assert (await one.receive_json())["unsubscribed"] == "room"
        await ask(one, 2, message={"type": "leave"})
        await hub_of(app).track("room", "a")
        assert await change(two) == joined(a=[None])
        await app({}).async_broadcast("room", "still here")
        assert await one.receive_json() == {"channel": "room", "data": "still here"}
    assert {"a": [None]} in seen


async def test_a_list_that_is_asked_for_again_has_the_changes_since() -> None:
    app = room()
    async with client(app) as one:
        await opened(one)
        assert await watch(one) == {}
        await hub_of(app).track("room", "a")
        assert await change(one) == joined(a=[None])
        assert await watch(one, 2) == {"a": [None]}
        await hub_of(app).untrack("room", "a")
        assert await change(one) == left(a=[None])


async def test_a_change_after_the_list_was_read_follows_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def add(self: Any, *args: Any) -> Any:
        found = await original(self, *args)
        await hub.track("room", str(await hub.presence("room")))
        return found

    app = room()
    hub = hub_of(app)
    async with client(app) as one:
        await opened(one)
        await ask(one, 1, subscribe=[{"channel": "room"}])
        original = Arrival.add
        monkeypatch.setattr(Arrival, "add", add)
        assert await watch(one, 2) == {}
        assert await change(one) == joined(**{"{}": [None]})


async def test_the_hook_of_the_class_and_the_client_both_learn_of_changes() -> None:
    seen = []

    class Base(BaseSocketServer):
        async def presence(self, channel: str, joined: Members, left: Members) -> None:
            seen.append((channel, joined, left))
            await self.async_send("after the change")

    app = room(Base)
    async with client(app) as one:
        await opened(one)
        await watch(one)
        await hub_of(app).track("room", "a")
        assert await change(one) == joined(a=[None])
        assert await one.receive_json() == {"data": "after the change"}
    assert seen == [("room", {"a": [None]}, {})]


async def test_the_hook_of_a_class_that_watches_for_itself_sends_the_client_nothing() -> None:
    seen = []

    class Base(BaseSocketServer):
        async def connect(self) -> None:
            await self.async_subscribe("room", presence=True)

        async def presence(self, channel: str, joined: Members, left: Members) -> None:
            seen.append(joined)
            await self.async_send("seen")

    app = room(Base)
    async with client(app) as one:
        await opened(one)
        await hub_of(app).track("room", "a")
        assert await one.receive_json() == {"data": "seen"}
    assert seen == [{"a": [None]}]


async def test_a_broker_without_presence_refuses_only_the_channels_that_ask_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def add(self: Hub, *args: Any, presence: Any = False, **options: Any) -> Any:
        if presence:
            raise ConfigurationError("this broker has no presence")
        return original(self, *args, **options)

    original = Hub.add
    monkeypatch.setattr(Hub, "add", add)
    async with client(room(), raise_errors=False) as one:
        await opened(one)
        answer = await ask(one, 1, subscribe=[ROOM, {"channel": "other"}])
        refused, allowed = answer["ok"]["channels"]
        assert refused["error"]["code"] == "internal"
        assert "no presence" not in json.dumps(answer)
        assert allowed == {"channel": "other"}
    assert "this broker has no presence" in caplog.text


async def test_may_subscribe_may_decide_about_presence_on_its_own() -> None:
    asked = []

    def may_subscribe(self: Any, channel: str, presence: bool = False) -> bool:
        asked.append((channel, presence))
        return not presence

    app = room(may_subscribe=may_subscribe)
    async with client(app) as one:
        await opened(one)
        answer = await ask(one, 1, subscribe=[ROOM, {"channel": "other"}])
        refused, allowed = answer["ok"]["channels"]
        assert (refused["error"]["code"], "presence" in refused) == ("forbidden", False)
        assert allowed == {"channel": "other"}
        assert asked == [("room", True), ("other", False)]
        plain = await ask(one, 2, subscribe=[{"channel": "room"}])
        assert plain["ok"]["channels"] == [{"channel": "room"}]
        again = await ask(one, 3, subscribe=[ROOM])
        assert again["ok"]["channels"][0]["error"]["code"] == "forbidden"
        await app({}).async_broadcast("room", "still here")
        assert await one.receive_json() == {"channel": "room", "data": "still here"}


@pytest.mark.parametrize("plain", [False, True])
async def test_may_subscribe_decides_about_presence_for_the_class_itself_too(plain: bool) -> None:
    class Base(BaseSocketServer):
        config = room().config

        def may_subscribe(self, channel: str, presence: bool = False) -> bool:
            return not presence

        async def connect(self) -> None:
            try:
                if plain:
                    call = self.subscribe_for_client
                    await asyncio.to_thread(call, "room", presence=True)
                else:
                    await self.async_subscribe_for_client("room", presence=True)
            except NotAllowed:
                await self.async_subscribe_for_client("room")
                await self.async_send("refused")

    async with client(Base) as one:
        await one.receive_json()
        assert await one.receive_json() == {"data": "refused"}


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
async def test_a_client_that_has_lost_changes_gets_the_list(policy: str) -> None:
    app = room(outbox_messages=4, overflow=policy)
    hub = hub_of(app)

    async def with_offer(scope: Any, receive: Any, send: Any) -> None:
        await app.as_asgi({**scope, "subprotocols": [V1]}, receive, send)

    slow = Reluctant(with_offer)
    async with slow:
        subscribe = json.dumps({"id": 1, "subscribe": [ROOM]})
        slow.say({"type": "websocket.receive", "text": subscribe})
        await slow.until(lambda: any("ok" in frame for frame in slow.got))
        slow.stop_reading()
        for key in ("gone", "a", "b", "c"):
            await hub.track("room", key)
        await hub.untrack("room", "gone")
        for number in range(HOLD_MESSAGES + 100):
            await hub.track("room", "busy", number)
        slow.go_on_reading()
        await hub.track("room", "end")
        await slow.until(lambda: "end" in shown(slow.got))
        assert {"gap": ["room"], "reason": "overflow"} in slow.got
        assert any("sync" in frame.get("presence", {}) for frame in slow.got)
        assert shown(slow.got) == await hub.presence("room")


def shown(frames: list[Any]) -> Members:
    """The list of a client that has got these frames."""
    members: dict[str, list[Any]] = {}
    for frame in frames:
        if "ok" in frame:
            members = frame["ok"]["channels"][0]["presence"]
        found = frame.get("presence", {})
        members = {**found["sync"]} if "sync" in found else members
        members = {**members, **found.get("joined", {}), **found.get("updated", {})}
        for key in found.get("left", {}):
            members.pop(key, None)
    return members
