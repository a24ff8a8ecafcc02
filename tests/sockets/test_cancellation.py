"""A call that is cancelled at any await leaves nothing behind and does not affect other calls.

Each call is repeated and cancelled at its first await, then at its second, and so on to its end. It
is cancelled when it begins to wait, or at the moment at which the awaited result arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any

import pytest

from django_sockets import Gap, Hub, Message, open_hub
from django_sockets.conf import load_config
from django_sockets.delivery.events import EventQueue
from django_sockets.runtime import close_shared_hubs, shared_hub
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.contract.faults import eventually
from django_sockets.testing.servers import CacheServer

PATIENCE_SECONDS = 10.0
MOST_AWAITS = 100

WHEN = ["as soon as it waits", "when it is answered"]


class CancelledAt:
    """Awaits a coroutine, and cancels its task at the n-th await, after a call of `meanwhile`."""

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        at: int,
        when: str,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        self._coroutine = coroutine
        self._at = at
        self._meanwhile = meanwhile
        self._answered = when == WHEN[1]
        self.awaits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        step: Callable[[], Any] = lambda: self._coroutine.send(None)  # noqa: E731
        while True:
            try:
                waiting = step()
            except StopIteration as ended:
                return ended.value
            self.awaits += 1
            if self.awaits == self._at:
                if self._meanwhile is not None:
                    self._meanwhile()
                if self._answered and waiting is not None:
                    # Before the callback that wakes the task up: it finds a result and the end.
                    waiting.add_done_callback(lambda _: task.cancel())
                else:
                    task.cancel()
            try:
                yield waiting
            except BaseException as exc:
                step = lambda exc=exc: self._coroutine.throw(exc)  # noqa: E731
            else:
                step = lambda: self._coroutine.send(None)  # noqa: E731


async def cancel_at(
    coroutine: Coroutine[Any, Any, Any],
    at: int,
    when: str,
    meanwhile: Callable[[], None] | None = None,
) -> bool:
    """Run the coroutine; False if it ended before its n-th await."""
    steps = CancelledAt(coroutine, at, when, meanwhile)

    async def run() -> None:
        await steps

    task = asyncio.create_task(run())
    await asyncio.wait([task], timeout=PATIENCE_SECONDS)
    assert task.done(), f"it does not end when it is cancelled at await {at}"
    if not task.cancelled():
        task.result()
    assert task.cancelled() or steps.awaits < at or when == WHEN[1], "it swallowed the cancellation"
    return steps.awaits >= at


@dataclasses.dataclass
class Place:
    """A hub with two subscribers: the caller, and a neighbour in `kept` and `shared`."""

    hub: Hub
    server: CacheServer | None
    caller: EventQueue
    neighbour: EventQueue

    async def server_channels(self) -> set[str]:
        if self.server is None:
            return set(self.hub._broker._inbox.channels)  # type: ignore[attr-defined]
        names = await asyncio.to_thread(self.server.execute, "PUBSUB", "CHANNELS", "*:{*")
        return {name.partition("{")[2].rpartition("}")[0] for name in names}

    async def check(self, owned: set[str], neighbours: set[str]) -> None:
        """The hub and the server know these subscriptions, and everything works."""
        hub = self.hub
        assert hub.channels_of(self.caller) == owned
        assert hub.channels_of(self.neighbour) == neighbours
        stats = hub.stats()
        assert stats["channels"] == len(owned | neighbours), stats
        assert stats["subscribers"] == bool(owned) + bool(neighbours), stats

        async def wrong() -> int:
            return len(await self.server_channels() ^ (owned | neighbours))

        await eventually(wrong, 0)
        mark = uuid.uuid4().bytes
        await hub.add(self.caller, ["a", "shared"])
        await hub.publish(["kept", "shared", "a"], mark)
        for queue, channels in (
            (self.caller, {"a", "shared"}),
            (self.neighbour, neighbours),
        ):
            await hears(queue, mark, channels)


async def hears(queue: EventQueue, mark: bytes, channels: set[str]) -> None:
    """Read until the mark has arrived on each of the channels."""
    silent = {channel for channel in channels if channel in ("kept", "shared", "a")}
    while silent:
        event = await asyncio.wait_for(queue.next(), PATIENCE_SECONDS)
        assert event is not None
        assert not isinstance(event, Gap), event
        if event.payload == mark:
            silent.remove(event.channel)


@pytest.fixture(params=["memory", "valkey"])
def server(request: pytest.FixtureRequest) -> CacheServer | None:
    if request.param == "memory":
        return None
    server: CacheServer = request.getfixturevalue("fresh_valkey_server")
    return server


def url_of(server: CacheServer | None) -> str:
    return f"memory://{uuid.uuid4().hex}" if server is None else server.url


@contextlib.asynccontextmanager
async def opened(server: CacheServer | None) -> AsyncIterator[Place]:
    async with open_hub(url_of(server)) as hub:
        yield Place(hub, server, hub.new_queue(), hub.new_queue())


# The calls: what was subscribed before, the call, and what is if it was cancelled and if not


async def subscribe(place: Place) -> None:
    await place.hub.add(place.caller, ["a", "b", "shared"])


async def stay_a_moment(place: Place) -> None:
    async with place.hub.subscribe("a", "shared") as events:
        await place.hub.publish("a", b"?")
        assert await anext(events) == Message(channel="a", payload=b"?")


async def unsubscribe(place: Place) -> None:
    await place.hub.remove(place.caller, ["a", "shared"])


async def unsubscribe_and_again(place: Place) -> None:
    await place.hub.remove(place.caller)
    await place.hub.add(place.caller, ["b"])


async def publish(place: Place) -> None:
    await place.hub.publish(["a", "kept", "shared"], b"?")


ALL = {"a", "b", "shared"}

CALLS: dict[
    str, tuple[set[str], Callable[[Place], Coroutine[Any, Any, None]], set[str], set[str]]
] = {
    "subscribe": (set(), subscribe, set(), ALL),
    "subscribe to some more": ({"a"}, subscribe, {"a"}, ALL),
    "stay a moment": (set(), stay_a_moment, set(), set()),
    "unsubscribe": (ALL, unsubscribe, {"b"}, {"b"}),
    "unsubscribe and subscribe again": ({"a"}, unsubscribe_and_again, set(), {"b"}),
    "publish": ({"a"}, publish, {"a"}, {"a"}),
}


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "first of all"])
@pytest.mark.parametrize("name", CALLS)
async def test_a_hub_is_as_it_was_after_a_call_that_was_cancelled(
    name: str, connected: bool, when: str, server: CacheServer | None
) -> None:
    before, call, after, done = CALLS[name]
    at, going_on = 0, True
    while going_on:
        at += 1
        assert at < MOST_AWAITS
        async with opened(server) as place:
            neighbours = {"kept", "shared"} if connected else set()
            if connected:
                await place.hub.add(place.neighbour, neighbours)
            if before:
                await place.hub.add(place.caller, before)
            going_on = await cancel_at(call(place), at, when)
            await place.check(after if going_on else done, neighbours)
    print(f"{at - 1} awaits")


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("who", ["the neighbour", "the caller itself"])
async def test_a_subscribe_that_is_cancelled_takes_nothing_from_one_at_the_same_time(
    who: str, when: str, server: CacheServer | None
) -> None:
    at, going_on = 0, True
    while going_on:
        at += 1
        async with opened(server) as place:
            other = place.neighbour if who == "the neighbour" else place.caller
            calls: list[asyncio.Task[None]] = []

            def join(place: Place = place, other: EventQueue = other, calls: Any = calls) -> None:
                calls.append(asyncio.create_task(place.hub.add(other, ["a", "shared"])))

            going_on = await cancel_at(subscribe(place), at, when, join)
            if not going_on:
                join()
            await calls[0]
            assert place.hub.channels_of(other) >= {"a", "shared"}, at
            mark = uuid.uuid4().bytes
            await place.hub.publish(["a", "shared"], mark)
            await hears(other, mark, {"a", "shared"})


@pytest.mark.parametrize("when", WHEN)
async def test_a_socket_that_is_cancelled_anywhere_leaves_its_hub_as_it_was(
    when: str, server: CacheServer | None
) -> None:
    """Servers do this when they stop, and when they lose a client."""
    url = url_of(server)
    hub = shared_hub(load_config(url))
    place = Place(hub, server, hub.new_queue(), hub.new_queue())
    await hub.add(place.neighbour, ["kept", "shared"])
    calls: list[str] = []
    gone = asyncio.Event()

    class Member(BaseSocketServer):
        config = url

        async def connect(self) -> None:
            calls.append("connect")
            await self.async_subscribe(["a", "shared"])
            await self.async_send("joined")

        async def receive(self, data: Any) -> None:
            await self.async_broadcast("a", data)
            await self.async_unsubscribe("a")
            await self.async_subscribe("b")

        async def disconnect(self, code: int) -> None:
            calls.append("disconnect")
            await asyncio.sleep(0)
            await self.async_broadcast("shared", "gone")
            gone.set()

    async def one_life(incoming: asyncio.Queue[Any]) -> None:
        async def send(event: Any) -> None:
            await asyncio.sleep(0)
            if event["type"] == "websocket.accept":
                incoming.put_nowait({"type": "websocket.receive", "text": '"hello"'})
                incoming.put_nowait({"type": "websocket.disconnect", "code": 1001})

        incoming.put_nowait({"type": "websocket.connect"})
        scope = {"type": "websocket", "path": "/", "headers": []}
        await Member.as_asgi(scope, incoming.get, send)

    at, going_on = 0, True
    while going_on:
        at += 1
        assert at < MOST_AWAITS
        calls.clear()
        gone.clear()
        going_on = await cancel_at(one_life(asyncio.Queue()), at, when)
        if calls:
            # The server may have cancelled `disconnect`, which continues.
            await asyncio.wait_for(gone.wait(), PATIENCE_SECONDS)
            # Where the accept was not taken yet there was nothing to connect.
            assert calls in (["disconnect"], ["connect", "disconnect"]), at
        assert hub.stats()["sockets"] == 0, at
        await place.check(set(), {"kept", "shared"})
        await hub.remove(place.caller)
        while place.caller.drain():
            pass
    print(f"{at - 1} awaits")
    await close_shared_hubs()
