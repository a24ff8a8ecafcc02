"""What members and watchers see, in memory and with real servers.

A hub of its own watches, as in another process. If one of these fails, users see a member twice, or
not at all, or somebody is seen who only watches.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from django_sockets import Presence, open_hub
from django_sockets.broadcaster import Broadcaster
from django_sockets.delivery.events import Events
from django_sockets.runtime import background_loop, close_shared_hubs
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import override_broker
from django_sockets.testing.client import SocketClient
from django_sockets.testing.contract.base import with_options

ROOM = "room:1"
PATIENCE_SECONDS = 20


@pytest.fixture(params=["memory", "valkey_server", "fakeredis", "valkey_cluster"])
def url(request: pytest.FixtureRequest) -> str:
    """A namespace of its own, with a grace that tests can wait for."""
    name = uuid.uuid4().hex[:12]
    if request.param in ("memory", "fakeredis"):
        where = f"{request.param}://presence-{name}"
    else:
        where = with_options(request.getfixturevalue(request.param).url, prefix=f"p{name}")
    return with_options(where, presence_grace_seconds=0.3)


class Watcher:
    """A hub that watches."""

    def __init__(self, events: Events) -> None:
        self.first = events.recoveries[ROOM].presence
        self._events = events

    async def change(self) -> dict[str, Mapping[str, Any]]:
        """The next change, without the parts that are empty."""
        event = await asyncio.wait_for(anext(self._events), PATIENCE_SECONDS)
        assert isinstance(event, Presence)
        parts = {"joined": event.joined, "left": event.left, "updated": event.updated}
        return {name: members for name, members in parts.items() if members}


@pytest.fixture
async def watcher(url: str) -> AsyncIterator[Watcher]:
    with override_broker(url):
        async with open_hub(url) as hub, hub.subscribe(ROOM, presence=True) as events:
            yield Watcher(events)
        await close_shared_hubs()
        closing = asyncio.run_coroutine_threadsafe(close_shared_hubs(), background_loop())
        await asyncio.wrap_future(closing)


class Tab(BaseSocketServer):
    """It is present under the name in its query, and changes its info to what its client sends."""

    async def connect(self) -> None:
        await self.async_track(ROOM, {"page": 1}, self.scope["query_string"].decode() or None)
        await self.async_send("present")

    async def receive(self, data: Any) -> None:
        await self.async_track(ROOM, data, self.scope["query_string"].decode() or None)


async def read(client: SocketClient) -> Any:
    return await client.receive_json(PATIENCE_SECONDS)


async def test_two_tabs_are_one_member_until_the_second_one_is_closed(watcher: Watcher) -> None:
    assert watcher.first == {}
    page = {"page": 1}
    async with SocketClient(Tab.as_asgi, "/?ann") as first:
        assert await read(first) == "present"
        assert await watcher.change() == {"joined": {"ann": [page]}}
        async with SocketClient(Tab.as_asgi, "/?ann") as second:
            assert await read(second) == "present"
            assert await watcher.change() == {"updated": {"ann": [page, page]}}
        assert await watcher.change() == {"updated": {"ann": [page]}}
        assert await Broadcaster().async_presence(ROOM) == {"ann": [page]}
    assert await watcher.change() == {"left": {"ann": [page]}}
    assert await Broadcaster().async_presence(ROOM) == {}


async def test_a_changed_info_is_seen(watcher: Watcher) -> None:
    async with SocketClient(Tab.as_asgi, "/?ann") as ann:
        assert await read(ann) == "present"
        assert await watcher.change() == {"joined": {"ann": [{"page": 1}]}}
        await ann.send_json({"page": 2})
        assert await watcher.change() == {"updated": {"ann": [{"page": 2}]}}
        assert await Broadcaster().async_presence(ROOM) == {"ann": [{"page": 2}]}


class Hidden(BaseSocketServer):
    """It watches, and is not present."""

    async def connect(self) -> None:
        found = await self.async_subscribe(ROOM, presence=True)
        await self.async_send(found.presence)

    async def presence(self, channel: str, joined: Any, left: Any) -> None:
        await self.async_send([list(joined), list(left)])


async def test_a_hidden_observer_sees_members_and_is_seen_by_nobody(watcher: Watcher) -> None:
    async with SocketClient(Hidden.as_asgi, "/") as hidden:
        assert await read(hidden) == {}
        async with SocketClient(Tab.as_asgi, "/?ann") as ann:
            assert await read(ann) == "present"
            assert await read(hidden) == [["ann"], []]
            assert await Broadcaster().async_presence(ROOM) == {"ann": [{"page": 1}]}
        assert await read(hidden) == [[], ["ann"]]
    # The observer has come and gone, and the first changes are those of the member.
    assert await watcher.change() == {"joined": {"ann": [{"page": 1}]}}
    assert await watcher.change() == {"left": {"ann": [{"page": 1}]}}


async def test_anonymous_members_are_one_for_each_connection(watcher: Watcher) -> None:
    """The key is the session of the connection, so that a page finds itself in the list."""
    sessions = set()
    async with (
        SocketClient(Tab.as_asgi, "/", subprotocols=["django-sockets.v1"]) as one,
        SocketClient(Tab.as_asgi, "/", subprotocols=["django-sockets.v1"]) as two,
    ):
        for client in (one, two):
            sessions.add((await read(client))["hello"]["session"])
        keys: set[str] = set()
        while len(keys) < 2:
            change = await watcher.change()
            assert change.keys() == {"joined"}
            keys |= change["joined"].keys()
        assert keys == sessions
        await one.send_json({"id": 1, "message": {"page": 2}})
    gone: set[str] = set()
    while len(gone) < 2:
        gone |= (await watcher.change()).get("left", {}).keys()
    assert gone == sessions


class Alone(BaseSocketServer):
    """It watches, is present, and sends to the others only."""

    async def connect(self) -> None:
        await self.async_subscribe(ROOM, presence=True)
        await self.async_track(ROOM, None, "me")
        await self.async_broadcast(ROOM, "hello", exclude_self=True)
        await self.async_untrack(ROOM)

    async def presence(self, channel: str, joined: Any, left: Any) -> None:
        await self.async_send([list(joined), list(left)])


async def test_exclude_self_concerns_messages_and_not_members(watcher: Watcher) -> None:
    async with SocketClient(Alone.as_asgi, "/") as client:
        assert await read(client) == [["me"], []]
        assert await read(client) == [[], ["me"]]
