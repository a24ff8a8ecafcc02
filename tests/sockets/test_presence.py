"""Sockets that are present on channels, and sockets that watch the members.

If one of these fails, users see somebody who has left, or do not see somebody who is there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from django_sockets import (
    BrokerClosed,
    ChannelError,
    ConfigurationError,
    EncodeError,
    PayloadTooLarge,
    PresenceFull,
)
from django_sockets.broadcaster import Broadcaster
from django_sockets.conf import load_config
from django_sockets.runtime import background_loop, close_shared_hubs, local_hubs
from django_sockets.runtime.shared_hubs import shared_hub
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import override_broker
from django_sockets.testing.client import SocketClient
from django_sockets.testing.clock import MovedClock, moved_clock

ROOM = "room:1"


@pytest.fixture
async def clock() -> AsyncIterator[MovedClock]:
    """Every test has a bus and a clock of its own."""
    url = f"memory://presence-{random.getrandbits(48):x}"
    with moved_clock() as clock, override_broker(f"{url}?presence_members=3&max_presence_bytes=40"):
        yield clock
        await close_shared_hubs()
        closing = asyncio.run_coroutine_threadsafe(close_shared_hubs(), background_loop())
        await asyncio.wrap_future(closing)


class Watching(BaseSocketServer):
    """It tells its client of the members. The client names a method and its arguments."""

    async def connect(self) -> None:
        found = await self.async_subscribe(ROOM, presence=True)
        await self.async_send({"members": found.presence})

    async def receive(self, data: Any) -> None:
        name, *args = data
        try:
            result = await getattr(self, name)(*args)
        except Exception as exc:
            result = type(exc).__name__
        await self.async_send({"done": result})

    async def presence(
        self,
        channel: str,
        joined: Mapping[str, Any],
        left: Mapping[str, Any],
        updated: Mapping[str, Any],
    ) -> None:
        assert channel == ROOM
        await self.async_send({"joined": joined, "left": left, "updated": updated})


class Member(BaseSocketServer):
    """It is present under the name in its query, as every socket of a page."""

    async def connect(self) -> None:
        key = self.scope["query_string"].decode() or None
        await self.async_track(ROOM, {"page": 1}, key)
        await self.async_send("present")


def change(
    joined: Mapping[str, Any] | None = None,
    left: Mapping[str, Any] | None = None,
    updated: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {"joined": joined or {}, "left": left or {}, "updated": updated or {}}


async def test_a_watcher_has_the_members_at_once_and_then_each_change(clock: MovedClock) -> None:
    async with (
        SocketClient(Member.as_asgi, "/?ann") as ann,
        SocketClient(Watching.as_asgi, "/") as watcher,
    ):
        assert await ann.receive_json() == "present"
        first = await watcher.receive_json()
        if not first["members"]:  # The watcher was first.
            assert await watcher.receive_json() == change({"ann": [{"page": 1}]})
        async with SocketClient(Member.as_asgi, "/?bob") as bob:
            assert await bob.receive_json() == "present"
            assert await watcher.receive_json() == change({"bob": [{"page": 1}]})
        await clock.move(9.9)
        assert await Broadcaster().async_presence(ROOM) == {
            "ann": [{"page": 1}],
            "bob": [{"page": 1}],
        }
        await clock.move(0.2)
        assert await watcher.receive_json() == change(left={"bob": [{"page": 1}]})
        assert await Broadcaster().async_presence(ROOM) == {"ann": [{"page": 1}]}


async def test_a_client_that_reconnects_within_the_grace_does_not_leave(clock: MovedClock) -> None:
    async with SocketClient(Watching.as_asgi, "/") as watcher:
        assert await watcher.receive_json() == {"members": {}}
        async with SocketClient(Member.as_asgi, "/?ann") as ann:
            await ann.receive_json()
        await clock.move(5)
        async with SocketClient(Member.as_asgi, "/?ann") as ann:
            await ann.receive_json()
            await clock.move(30)
            assert await watcher.receive_json() == change({"ann": [{"page": 1}]})
            assert await Broadcaster().async_presence(ROOM) == {"ann": [{"page": 1}]}
        await clock.move(10.1)
        assert await watcher.receive_json() == change(left={"ann": [{"page": 1}]})
    (hub, *_) = local_hubs()
    stats = hub.stats()
    assert (stats["presence_joined"], stats["presence_left"]) == (1, 1)


async def test_two_tabs_are_one_member(clock: MovedClock) -> None:
    async with SocketClient(Watching.as_asgi, "/") as watcher:
        await watcher.receive_json()
        async with SocketClient(Member.as_asgi, "/?ann") as first:
            await first.receive_json()
            assert await watcher.receive_json() == change({"ann": [{"page": 1}]})
            async with SocketClient(Member.as_asgi, "/?ann") as second:
                await second.receive_json()
                assert await watcher.receive_json() == change(updated={"ann": [{"page": 1}] * 2})
            assert await watcher.receive_json() == change(updated={"ann": [{"page": 1}]})
            await clock.move(60)
            assert await Broadcaster().async_presence(ROOM) == {"ann": [{"page": 1}]}


async def test_untrack_is_at_once_and_an_info_can_be_changed(clock: MovedClock) -> None:
    async with SocketClient(Watching.as_asgi, "/") as socket:
        assert await socket.receive_json() == {"members": {}}
        seen = []
        for frame in (
            ["async_track", ROOM, {"typing": False}, "ann"],
            ["async_track", ROOM, {"typing": True}, "ann"],
            ["async_untrack", ROOM],
            ["async_untrack", ROOM],
        ):
            await socket.send_json(frame)
            while (answer := await socket.receive_json()) != {"done": None}:
                seen.append(answer)
        if len(seen) < 3:
            seen.append(await socket.receive_json())
        assert seen == [
            change({"ann": [{"typing": False}]}),
            change(updated={"ann": [{"typing": True}]}),
            change(left={"ann": [{"typing": True}]}),
        ]


class Tagged(Member):
    def authorize(self) -> None:
        self.tags = {"user": "7"}


async def test_the_key_is_the_user_or_else_an_id_of_the_connection(clock: MovedClock) -> None:
    async with (
        SocketClient(Tagged.as_asgi, "/") as tagged,
        SocketClient(Member.as_asgi, "/") as one,
        SocketClient(Member.as_asgi, "/") as two,
    ):
        for client in (tagged, one, two):
            assert await client.receive_json() == "present"
        members = await Broadcaster().async_presence(ROOM)
        assert len(members) == 3
        assert [len(key) for key in members if key != "7"] == [16, 16]


async def test_what_cannot_be_present_is_refused_with_a_clear_error(clock: MovedClock) -> None:
    hub = shared_hub(load_config())
    await hub.track(ROOM, "1")
    with pytest.raises(PayloadTooLarge, match=r"info of 44 bytes.*max_presence_bytes"):
        await hub.track(ROOM, "2", "x" * 42)
    with pytest.raises(EncodeError):
        await hub.track(ROOM, "2", object())
    with pytest.raises(ConfigurationError, match="control characters"):
        await hub.track(ROOM, "a\nb")
    with pytest.raises(ConfigurationError, match="256 bytes"):
        await hub.track(ROOM, "x" * 256)
    with pytest.raises(ConfigurationError, match="not str"):
        await hub.track(ROOM, 7)  # type: ignore[arg-type]
    with pytest.raises(ChannelError):
        await hub.track("", "2")
    await hub.track(ROOM, "2")
    await hub.track(ROOM, "3")
    with pytest.raises(PresenceFull, match="presence_members"):
        await hub.track(ROOM, "4")
    await hub.track(ROOM, "3", "changed")
    assert await hub.presence(ROOM) == {"1": [None], "2": [None], "3": ["changed"]}
    await hub.aclose()
    with pytest.raises(BrokerClosed):
        await hub.track(ROOM, "1")


class Two(BaseSocketServer):
    max_subscriptions = 2

    async def receive(self, data: Any) -> None:
        try:
            await self.async_track(data)
        except Exception as exc:
            await self.async_send(str(exc))
        else:
            await self.async_send("present")


async def test_a_socket_is_present_on_a_limited_number_of_channels(clock: MovedClock) -> None:
    async with SocketClient(Two.as_asgi, "/") as client:
        answers = []
        for channel in ("a", "b", "a", "c"):
            await client.send_json(channel)
            answers.append(await client.receive_json())
        assert answers[:3] == ["present"] * 3
        assert "max_subscriptions" in answers[3]


class Plain(BaseSocketServer):
    """All hooks are plain functions."""

    def connect(self) -> None:
        members = self.subscribe([ROOM, "other"], presence=True)
        self.track(ROOM, None, 7)
        self.send({name: found.presence for name, found in members.items()})

    def presence(self, channel: str, joined: Any, left: Any) -> None:
        self.send([channel, list(joined), list(left)])

    def receive(self, data: Any) -> None:
        self.untrack(ROOM)


async def test_plain_hooks_and_calls(clock: MovedClock) -> None:
    async with SocketClient(Plain.as_asgi, "/") as client:
        assert await client.receive_json() == {ROOM: {}, "other": {}}
        assert await client.receive_json() == [ROOM, ["7"], []]
        members = await asyncio.to_thread(Broadcaster().presence, ROOM)
        assert members == {"7": [None]}
        await client.send_json("leave")
        assert await client.receive_json() == [ROOM, [], ["7"]]


class InOrder(BaseSocketServer):
    """The hook takes its time; what arrives meanwhile must not overtake it."""

    async def connect(self) -> None:
        await self.async_subscribe(ROOM, presence=True)
        await self.async_send("ready")

    async def presence(self, channel: str, joined: Any, left: Any) -> None:
        await asyncio.sleep(0.01)
        await self.async_send([*(f"+{key}" for key in joined), *(f"-{key}" for key in left)])


async def test_changes_and_broadcasts_keep_their_order(clock: MovedClock) -> None:
    async with SocketClient(InOrder.as_asgi, "/") as client:
        assert await client.receive_json() == "ready"
        hub = shared_hub(load_config())
        expected: list[Any] = []
        for number in range(3):
            await hub.track(ROOM, "ann")
            await hub.publish(ROOM, b"%d" % (2 * number), is_text=True)
            await hub.untrack(ROOM, "ann")
            await hub.publish(ROOM, b"%d" % (2 * number + 1), is_text=True)
            expected += [["+ann"], 2 * number, ["-ann"], 2 * number + 1]
        assert [await client.receive_json() for _ in expected] == expected
